"""Which tool a request comes back from, and which family of jobs it belongs to."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from astraea_local.api.schemas import Message
from astraea_local.engine.binding import Tokens

# Instructions and tools stand at the beginning; behind it come paths, dates and the task itself.
_KIND_TOKENS = 48
_MAX_NAME = 64
_COMMAND_KEYS = ("command", "cmd", "script")


def kind_of(prompt: Tokens) -> str:
    """A short name that prompts with the same beginning share; "" for one too short to tell."""
    if len(prompt) < _KIND_TOKENS:
        return ""
    return hashlib.blake2b(prompt[:_KIND_TOKENS].tobytes(), digest_size=4).hexdigest()


def returned_tool(messages: Sequence[Message]) -> str:
    """The tool whose result the conversation ends with: `name`, `name:verb` for a shell, "" if none.

    Of several calls answered together the first counts.
    """
    calls: list[dict[str, Any]] = []
    for message in reversed(messages):
        if message.role == "assistant":
            calls = message.tool_calls or []
            break
        if message.role not in ("tool", "function"):
            return ""
    if not calls:
        return ""
    function = calls[0]["function"]
    return tool_key(function["name"], function.get("arguments"))


def tool_key(name: str, arguments: object) -> str:
    """`name`, or `name:verb` when the arguments (JSON text or an object) hold a shell command."""
    name, verb = _clean(name), _verb(arguments)
    return f"{name}:{verb}" if verb else name


def _verb(arguments: object) -> str:
    """The program that a shell command starts, "" when there is none."""
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return ""
    if not isinstance(parsed, dict):
        return ""
    command = next((parsed[key] for key in _COMMAND_KEYS if key in parsed), None)
    words = command if isinstance(command, list) else _words(command)
    return next((verb for word in words if (verb := _program(word))), "")


def _words(command: object) -> list[str]:
    if not isinstance(command, str):
        return []
    # What a `cd` leads to is what takes the time.
    line = command.rpartition("&&")[2] if command.lstrip().startswith("cd ") else command
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _program(word: object) -> str:
    """The name of a program, "" for what only stands before one: `FOO=1`, `sudo`, `bash -lc`."""
    if not isinstance(word, str) or "=" in word or word.startswith("-"):
        return ""
    if " " in word:
        return _verb({"command": word})
    name = PurePosixPath(word).name
    return "" if name in ("sudo", "env", "time", "timeout", "bash", "sh", "zsh") else _clean(name)


def _clean(name: str) -> str:
    return "".join(c for c in name if c.isprintable() and c != ":")[:_MAX_NAME]
