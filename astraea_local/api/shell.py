"""What a shell command runs: the program that its time is spent in, whatever stands around it.

`cd /repo && FOO=1 timeout 60 pytest -q | tail` runs `pytest`. Nothing is executed or looked up.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

_SHELLS = frozenset(("bash", "sh", "zsh", "dash", "ksh", "fish", "pwsh", "powershell", "cmd"))
_COMMAND_FLAG = re.compile(r"-[a-z]*c|-command|/c", re.IGNORECASE)
# They prepare what comes next and take no time of their own.
_PREPARING = frozenset(
    "cd pushd popd export set unset source . umask ulimit alias shopt trap : true test [ [[ mkdir declare "
    "local wait echo printf".split()
)
_KEYWORDS = frozenset(("if", "then", "else", "elif", "do", "while", "until", "!", "{", "time"))
# Programs that start another one, with those of their options that take a value.
_STARTERS: dict[str, frozenset[str]] = {
    "sudo": frozenset(("-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T")),
    "doas": frozenset(("-u", "-C")),
    "env": frozenset(("-u", "-C", "--unset", "--chdir")),
    "timeout": frozenset(("-k", "-s", "--kill-after", "--signal")),
    "nice": frozenset(("-n", "--adjustment")),
    "ionice": frozenset(("-c", "-n", "-p")),
    "stdbuf": frozenset(("-i", "-o", "-e")),
    "taskset": frozenset(("-c",)),
    "exec": frozenset(("-a",)),
    "xargs": frozenset(("-n", "-P", "-I", "-L", "-d", "-s")),
    "nohup": frozenset(),
    "setsid": frozenset(),
    "command": frozenset(),
    "builtin": frozenset(),
    "unbuffer": frozenset(),
    "npx": frozenset(("-p", "--package")),
    "uvx": frozenset(("--from", "--with", "-p", "--python")),
}
# The same, where a word has to follow: `uv run pytest`.
_RUNNERS: dict[str, frozenset[str]] = {
    "uv": frozenset(("run",)),
    "poetry": frozenset(("run",)),
    "pipenv": frozenset(("run",)),
    "pdm": frozenset(("run",)),
    "hatch": frozenset(("run",)),
    "rye": frozenset(("run",)),
    "pixi": frozenset(("run",)),
    "bundle": frozenset(("exec",)),
    "pnpm": frozenset(("exec",)),
}
_RUNNER_VALUES = frozenset(("--with", "--extra", "--group", "--python", "-p", "--directory", "--project"))
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_AMOUNT = re.compile(r"\d[\d.]*[smhd]?|0x[0-9a-fA-F]+|[\d,-]+")
_PYTHON = re.compile(r"python[\d.]*|py|pypy3?")
_PUNCTUATION = ";&|()<>\n"
_MAX_CHARS = 4096
_MAX_DEPTH = 4


def program_of(command: object) -> str:
    """The program that a command line, or a list of words, mainly runs; "" for what is neither or empty."""
    return _program(command, 0)


def _program(command: object, depth: int) -> str:
    if depth > _MAX_DEPTH:
        return ""
    if isinstance(command, str):
        parts = _parts(command[:_MAX_CHARS])
    elif isinstance(command, list | tuple):
        words = [word[:_MAX_CHARS] for word in command if isinstance(word, str)]
        # A list of one is a command line that a client did not split.
        parts = _parts(words[0]) if len(words) == 1 else [words]
    else:
        return ""
    first = ""
    for part in parts:
        name = _of_part(part, depth)
        if name and name not in _PREPARING:
            return name
        first = first or name
    return first


def _parts(line: str) -> list[list[str]]:
    """The simple commands of a line, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:  # a quote without its end
        words = line.split()
    parts: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set(_PUNCTUATION):
            # What follows a redirection is a file, which does not begin a command.
            if not set(word) & set("<>") or "(" in word:
                parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part and not part[0].startswith("#")]


def _of_part(words: Sequence[str], depth: int) -> str:
    """The program of a simple command, without what only stands before it."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if _ASSIGNMENT.match(word) or word in _KEYWORDS or word.startswith("-"):
            continue
        name = PurePosixPath(word.replace("\\", "/")).name or word
        name = name.removesuffix(".exe")
        if name in _STARTERS:
            rest = _without_options(rest, _STARTERS[name])
        elif name in _RUNNERS and rest and rest[0] in _RUNNERS[name]:
            rest = _without_options(rest[1:], _RUNNER_VALUES)
        elif name in _SHELLS:
            if (script := _script_of(rest)) is not None:
                return _program(script, depth + 1)
        elif _PYTHON.fullmatch(name) and len(rest) > 1 and rest[0] == "-m":
            return rest[1]
        elif " " in word:
            # A whole line where a word was expected.
            return _program(word, depth + 1)
        else:
            return name
    return ""


def _without_options(words: list[str], with_value: frozenset[str]) -> list[str]:
    """The words behind a starter's options and amounts (`-k 5 60s`)."""
    rest = list(words)
    while rest and (rest[0].startswith("-") or _AMOUNT.fullmatch(rest[0])):
        option = rest.pop(0)
        if option in with_value and rest:
            rest.pop(0)
    return rest


def _script_of(words: Sequence[str]) -> str | None:
    """The command line given to a shell with `-c`, None when it gets a file or nothing."""
    for index, word in enumerate(words[:-1]):
        if _COMMAND_FLAG.fullmatch(word):
            return words[index + 1]
        if not word.startswith(("-", "/")):
            return None
    return None
