"""Recorded conversations of agents, as lengths and waits: a JSON object per line, ordered by time.

The format is that of the MLCommons `endpoints` agentic example (mini-swe-agent on SWE-bench):

* `conversation_id` (text), `turn` (ascending within a conversation), `role`
* `user`: `content`; the first one also `system` and `tools`
* `assistant`: `reasoning_content`, `content`, `tool_calls`, each where there is one
* `tool`: `tool_results` or `content`, and `delay_seconds`, what the tool took

Four characters count as one token. Tool calls and results count as the JSON they stand in, which is how the
published figures of that recording were counted (167 output tokens, 247 per result, 22.3k in the end).
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHARS_PER_TOKEN = 4
_ROLES = ("user", "assistant", "tool")
_FENCED = re.compile(r"```(?:bash|sh|shell)\n(.*?)```", re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# Words before the command that does the work; what follows them counts.
_PREFIXES = frozenset({"sudo", "time", "timeout", "env", "nohup", "exec", "command"})
# Commands that only prepare the next one.
_PREPARE = frozenset({"cd", "export", "source", ".", "set", "unset", "pushd", "popd", "true", "sleep"})


class WorkloadError(ValueError):
    """A workload that cannot be made: a trace with a fault, or arguments that nothing can meet."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One assistant row, what came before it since the last one, and the tool that follows."""

    new_tokens: int
    output_tokens: int
    tool: str
    """"" after the last exchange of a conversation."""
    tool_s: float


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    head: str
    """Text with which its context begins: system prompt, tools and first message."""
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    conversation: str
    turn: int
    role: str
    text: str
    tool: str
    """Of an assistant row: the tool it calls, "" where none is seen."""
    delay_s: float


def read(path: Path) -> tuple[Conversation, ...]:
    """The conversations of the file in the order of their first lines; a tool result at the end is dropped.

    Raises `WorkloadError` with the file, the line and what is expected there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: not UTF-8 text: expected one JSON object per line") from error
    rows: dict[str, list[_Row]] = {}
    # Not splitlines(): JSON text may hold other characters that it takes for the end of a line.
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                row = _row(line, content)
                _check_order(rows.get(row.conversation, []), row)
            except WorkloadError as error:
                raise WorkloadError(f"{path}, line {line}: {error}") from error
            rows.setdefault(row.conversation, []).append(row)
    if not rows:
        raise WorkloadError(f"{path}, line 1: no conversation: expected one JSON object per line")
    for name, own in rows.items():
        if all(row.role == "user" for row in own):
            raise WorkloadError(
                f"{path}, line {own[0].line}: conversation {name!r} has no answer: expected an assistant row"
            )
    return tuple(Conversation(name, own[0].text, _exchanges(own)) for name, own in rows.items())


def common_tokens(conversations: tuple[Conversation, ...]) -> int:
    """Tokens with which all of them begin; 0 for a single one, which tells nothing about others."""
    if len(conversations) == 1:
        return 0
    # What the first and the last in order have in common, those between have too.
    first, last = (pick(conversation.head for conversation in conversations) for pick in (min, max))
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return same // _CHARS_PER_TOKEN


def verb(command: str) -> str:
    """The program that a shell command runs first of note, without folder and version; "" if none is seen.

    `cd /src && PYTHONPATH=. python3 -m pytest -q` is "pytest".
    """
    for part in re.split(r"&&|\|\||[;|\n]", command):
        words = part.split()
        while words and (_ASSIGNMENT.match(words[0]) or _is_prefix(words[0])):
            del words[0]
        if not words or words[0] in _PREPARE or words[0].startswith("#"):
            continue
        name = re.sub(r"^(python|pip)[\d.]+$", r"\1", words[0].rsplit("/", 1)[-1])
        if name == "python" and words[1:2] == ["-m"] and len(words) > 2:
            name = words[2]
        return name if re.fullmatch(r"[A-Za-z][\w.+-]{0,40}", name) else ""
    return ""


def _is_prefix(word: str) -> bool:
    return word in _PREFIXES or word.startswith("-") or re.fullmatch(r"\d+[smh]?", word) is not None


def _row(line: int, content: str) -> _Row:
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{error.msg} at column {error.colno}: expected a JSON object") from error
    if not isinstance(data, dict):
        raise WorkloadError(f"expected a JSON object, not {type(data).__name__}")
    name, turn, role = data.get("conversation_id"), data.get("turn"), data.get("role")
    if not isinstance(name, str) or not name:
        raise WorkloadError(f"conversation_id is {name!r}: expected a text")
    if not isinstance(turn, int):
        raise WorkloadError(f"turn is {turn!r}: expected a whole number")
    if role not in _ROLES:
        raise WorkloadError(f"role is {role!r}: expected one of {', '.join(_ROLES)}")
    fields = {
        "user": ("system", "tools", "content"),
        "assistant": ("reasoning_content", "content", "tool_calls"),
        "tool": ("tool_results", "content"),
    }[role]
    text = "".join(_text(data[key]) for key in fields if data.get(key))
    if not text:
        raise WorkloadError(f"no text in a row of role {role}: expected one of {', '.join(fields)}")
    return _Row(line, name, turn, role, text, _tool(data) if role == "assistant" else "", _delay(data, role))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _delay(data: dict[str, Any], role: str) -> float:
    """Seconds before the row; only a tool row must have them."""
    value = data.get("delay_seconds", None if role == "tool" else 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise WorkloadError(f"delay_seconds is {value!r}: expected a number of seconds, 0 or more")
    return float(value)


def _check_order(before: list[_Row], row: _Row) -> None:
    if not before:
        if row.role != "user":
            raise WorkloadError(f"conversation {row.conversation!r} begins with {row.role}: expected user")
        return
    last = before[-1]
    if row.turn <= last.turn:
        raise WorkloadError(f"turn {row.turn} after turn {last.turn}: expected a later one")
    if row.role == last.role == "assistant":
        raise WorkloadError("assistant twice in a row: expected a tool or user row between them")
    if row.role == "tool" and all(one.role == "user" for one in before):
        raise WorkloadError("a tool row before the first answer: expected an assistant row")


def _tool(data: dict[str, Any]) -> str:
    """The first tool that an assistant row calls, with the verb of its shell command."""
    calls = data.get("tool_calls")
    if not calls:
        fenced = _FENCED.search(_text(data.get("content") or ""))
        return _named("bash", fenced[1]) if fenced else ""
    try:
        function = calls[0]["function"]
        name, arguments = function["name"], function.get("arguments") or {}
    except (KeyError, IndexError, TypeError, AttributeError):
        name = None
    if not isinstance(name, str) or not name:
        raise WorkloadError("tool_calls: expected a list of objects with function.name")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            # A model may write broken arguments; the call took its time all the same.
            return name
    command = arguments.get("command") if isinstance(arguments, dict) else None
    return _named(name, command) if isinstance(command, str) else name


def _named(tool: str, command: str) -> str:
    found = verb(command)
    return f"{tool}:{found}" if found else tool


def _exchanges(rows: list[_Row]) -> tuple[Exchange, ...]:
    answers = [place for place, row in enumerate(rows) if row.role == "assistant"]
    made = []
    for before, place, after in zip([-1, *answers], answers, [*answers[1:], None], strict=False):
        waits = rows[place + 1 : after] if after is not None else []
        row = rows[place]
        made.append(
            Exchange(
                new_tokens=_tokens(rows[before + 1 : place]),
                output_tokens=_tokens([row]),
                tool=(row.tool or waits[0].role) if waits else "",
                tool_s=math.fsum(wait.delay_s for wait in waits),
            )
        )
    return tuple(made)


def _tokens(rows: list[_Row]) -> int:
    return max(1, round(sum(len(row.text) for row in rows) / _CHARS_PER_TOKEN))
