"""Every key of the UI, by the name under which a user can change it; and the file in which to do so.

`keys.toml` in the user's configuration folder:

    theme = "nord"
    [keys]
    park = "ctrl+k"
    quit = "q,ctrl+c"
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from textual.binding import Binding
from textual.keys import KEY_ALIASES, Keys


class KeysError(Exception):
    """A file of keys that cannot be used; the message is one line naming the file, the key and the remedy."""


@dataclass(frozen=True, slots=True)
class Key:
    """A thing that a key does."""

    keys: str
    """As Textual names them, alternatives with commas."""
    text: str
    group: str
    shown: bool = False
    """Whether it is named at the bottom of the screen."""


KEYS: dict[str, Key] = {
    "quit": Key("q,ctrl+c", "Quit", "general", shown=True),
    "help": Key("question_mark,f1", "Help", "general", shown=True),
    "palette": Key("colon,ctrl+p", "Commands", "general"),
    "open": Key("enter", "Open", "general", shown=True),
    "back": Key("escape", "Back", "general"),
    "filter": Key("slash", "Filter", "general", shown=True),
    "hold": Key("p", "Hold", "general", shown=True),
    "slower": Key("minus", "Fewer frames", "general"),
    "faster": Key("plus,equals_sign", "More frames", "general"),
    "maximize": Key("m", "Maximize", "general"),
    "history": Key("h", "History", "screens", shown=True),
    "kv_map": Key("v", "KV map", "screens", shown=True),
    "panel_1": Key("1", "Memory panel", "panels"),
    "panel_2": Key("2", "Speed panel", "panels"),
    "panel_3": Key("3", "Slots panel", "panels"),
    "panel_4": Key("4", "Queues panel", "panels"),
    "panel_5": Key("5", "Agents panel", "panels"),
    "panel_6": Key("6", "Events panel", "panels"),
    "panel_7": Key("7", "Advisor panel", "panels"),
    "sort": Key("s", "Sort by next column", "tables"),
    "reverse": Key("r", "Reverse the order", "tables"),
    "level": Key("l", "Least level of the log", "tables"),
    "window": Key("w", "Length of the timeline", "tables"),
    "export_csv": Key("e", "Export CSV", "tables"),
    "export_json": Key("j", "Export JSON", "tables"),
    "pin": Key("i", "Pin KV to its slot, or unpin", "actions"),
    "park": Key("k", "Park KV now", "actions"),
    "drop": Key("d", "Drop KV", "actions"),
    "cancel": Key("c", "Cancel job", "actions"),
    "raise": Key("greater_than_sign", "Raise priority", "actions"),
    "lower": Key("less_than_sign", "Lower priority", "actions"),
    "policy": Key("o", "Policy", "actions"),
    "scheduler": Key("x", "Pause or resume the scheduler", "actions"),
    "resize": Key("z", "Resize the context", "actions"),
    "server": Key("g", "Give the GPU back, or resume", "actions"),
    "play": Key("space", "Play or pause", "recordings"),
    "step_on": Key("right_square_bracket", "Next frame", "recordings"),
    "step_back": Key("left_square_bracket", "Previous frame", "recordings"),
    "speed_up": Key("full_stop", "Play faster", "recordings"),
    "slow_down": Key("comma", "Play slower", "recordings"),
}


@dataclass(frozen=True, slots=True)
class KeysFile:
    """What a user has changed."""

    keys: dict[str, str] = field(default_factory=dict)
    theme: str | None = None


def binding(name: str, action: str | None = None) -> Binding:
    """The binding of that name to an action, by default the one of the same name."""
    key = KEYS[name]
    return Binding(key.keys, action or name, key.text, show=key.shown, id=name)


def path() -> Path:
    """Where the file is looked for; the folder may not exist."""
    return platformdirs.user_config_path("astraea-local", appauthor=False) / "keys.toml"


def load(file: Path) -> KeysFile:
    """What is in the file, nothing when there is none. Raises `KeysError`."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return KeysFile()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{file}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise KeysError(f"{file}: not valid TOML: {error}") from None
    for name in data.keys() - {"keys", "theme"}:
        raise KeysError(f"{file}: unknown field {name!r}: known here are theme and [keys]")
    theme, keys = data.get("theme"), data.get("keys", {})
    if theme is not None and not isinstance(theme, str):
        raise KeysError(f"{file}: theme: must be a name in quotes")
    if not isinstance(keys, dict):
        raise KeysError(f"{file}: keys: must be a table, as in [keys]")
    for name, value in keys.items():
        _check(file, name, value)
    _check_clashes(file, keys)
    return KeysFile(keys, theme)


def in_force(changed: dict[str, str]) -> dict[str, str]:
    """The keys of every name, the user's where there are."""
    return {name: changed.get(name, key.keys) for name, key in KEYS.items()}


def readable(keys: str) -> str:
    """Keys as a person writes them: `?  f1`."""
    return "  ".join(_SYMBOLS.get(key, key) for key in keys.split(","))


def _check(file: Path, name: str, value: Any) -> None:
    if name not in KEYS:
        raise KeysError(f"{file}: keys.{name}: no such action: known are {', '.join(KEYS)}")
    if not isinstance(value, str) or not value:
        raise KeysError(f'{file}: keys.{name}: must be a key in quotes, as in {name} = "ctrl+k"')
    for key in value.split(","):
        if not _is_key(key.strip()):
            raise KeysError(f"{file}: keys.{name}: {key!r} is no key: write k, K, ctrl+k, f5, or space")


def _check_clashes(file: Path, changed: dict[str, str]) -> None:
    taken: dict[str, str] = {}
    for name, keys in in_force(changed).items():
        for key in map(_normal, keys.split(",")):
            other = taken.setdefault(key, name)
            if other != name and (name in changed or other in changed):
                raise KeysError(f"{file}: keys.{name}: {readable(key)!r} is the key of {other}: take another")


def _normal(key: str) -> str:
    key = key.strip()
    return next((name for name, symbol in _SYMBOLS.items() if symbol == key), key)


def _is_key(key: str) -> bool:
    *modifiers, last = key.split("+") if key != "+" else [key]
    if any(modifier not in ("ctrl", "shift", "alt", "super", "meta") for modifier in modifiers):
        return False
    return len(last) == 1 or last in _NAMED or last in _SYMBOLS


_NAMED = {key.value for key in Keys} | set(KEY_ALIASES) | {f"f{number}" for number in range(1, 25)}
_SYMBOLS = {
    "question_mark": "?",
    "colon": ":",
    "slash": "/",
    "minus": "-",
    "plus": "+",
    "equals_sign": "=",
    "greater_than_sign": ">",
    "less_than_sign": "<",
    "right_square_bracket": "]",
    "left_square_bracket": "[",
    "full_stop": ".",
    "comma": "comma",
}
