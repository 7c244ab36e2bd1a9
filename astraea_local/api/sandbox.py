"""Runs a chat template where it can do no harm.

A template is a program out of a file that somebody published. Jinja's sandbox keeps it from Python's insides;
what it cannot keep it from is never ending, or filling the memory, and a thread that does so cannot be
stopped. So it runs in a process of its own with limits that the kernel holds (`sandbox_worker.py`), and that
process is replaced when it dies.
"""

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from datetime import datetime
from typing import Any

from astraea_local.api import sandbox_worker

# Processor time of one rendering; a long conversation takes milliseconds.
TIME_S = 5.0

_COMMAND = (sys.executable, "-P", sandbox_worker.__file__)


class TemplateFault(Exception):
    """The template is no Jinja; the message says where."""


class TemplateRefusal(Exception):
    """The template raised an error of its own; the message is the template's."""


class TemplateFailure(Exception):
    """The template could not be rendered; the message says why."""


class Sandbox:
    """One compiled template in its process. Renderings wait for one another; any thread may ask."""

    def __init__(self, source: str, time_s: float = TIME_S) -> None:
        """`time_s` is the processor time that one rendering may take. Raises `TemplateFault`."""
        self._source = source
        self._time_s = time_s
        self._lock = threading.Lock()
        self._process = self._start()

    def render(self, context: dict[str, Any], now: datetime) -> str:
        """The text for a context of plain JSON values; `now` is what the template may ask for.

        Raises `TemplateRefusal` and `TemplateFailure`.
        """
        line = json.dumps({"context": context, "now": now.isoformat()})
        with self._lock:
            if self._process.poll() is not None:
                self._process = self._start()
            answer = _ask(self._process, line)
            if answer is None:
                self._finalizer()
                raise TemplateFailure(f"it takes longer than {self._time_s:g} s, or too much memory")
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise TemplateRefusal(answer["refused"])
        raise TemplateFailure(answer["failed"])

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._finalizer()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - our own module
            (*_COMMAND, str(self._time_s)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="ascii",
            start_new_session=True,  # Ctrl-C is for the server, which ends it
        )
        self._finalizer = weakref.finalize(self, _end, process)
        answer = _ask(process, json.dumps(self._source))
        if answer is None or "syntax" in answer:
            self._finalizer()
            raise TemplateFault("it cannot be compiled" if answer is None else answer["syntax"])
        return process


def _ask(process: subprocess.Popen[str], line: str) -> dict[str, str] | None:
    """The answer to a line; None when the process died over it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        return None
    return json.loads(answer) if answer.endswith("\n") else None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        # What was not yet written is of no use any more.
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    process.wait()
