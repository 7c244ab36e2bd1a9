"""Colours by meaning, so that renderers name what something is and themes say how it looks."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Palette:
    """Rich styles. The default is for plain output: the terminal's own sixteen colours."""

    text: str = ""
    dim: str = "bright_black"
    title: str = "bold"
    accent: str = "cyan"
    ok: str = "green"
    warn: str = "yellow"
    bad: str = "red"
    queued: str = "yellow"
    prefill: str = "blue"
    decode: str = "green"
    waiting: str = "magenta"
    preempted: str = "red"
    weights: str = "blue"
    kv: str = "cyan"
    compute: str = "green"
    others: str = "magenta"
    track: str = "bright_black"
    """The empty part of a bar."""

    def of_state(self, state: str) -> str:
        """Style of a job's state or a span's phase; states without a colour of their own are dim."""
        return str(getattr(self, _STATES.get(state, "dim")))

    def of_level(self, level: str) -> str:
        """Style of an event's or an advice's level, and of a pressure."""
        return str(getattr(self, _LEVELS.get(level, "text")))


_STATES = {
    "queued": "queued",
    "prefill": "prefill",
    "decode": "decode",
    "preempted": "preempted",
    "paused": "preempted",
    "waiting": "waiting",
    "tool": "waiting",
}
_LEVELS = {
    "debug": "dim",
    "info": "text",
    "warning": "warn",
    "error": "bad",
    "low": "ok",
    "normal": "ok",
    "high": "warn",
    "critical": "bad",
}
PLAIN = Palette()
MONOCHROME = Palette(**{field.name: "" for field in fields(Palette)})
