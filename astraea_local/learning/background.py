"""Trains while the server is idle, in a process of its own that yields to everything else."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from astraea_local.learning import available
from astraea_local.learning.evaluate import MIN_ROWS
from astraea_local.learning.store import file_name

_IDLE_S = 30.0
_APART_S = 600.0
# As a share of the records of the last training.
_GROWTH = 0.2


def is_due(records: int, trained: int, idle_s: float, since_s: float | None) -> bool:
    """Whether to train now.

    `records`: recorded by now; `trained`: when the last training began, 0 before the first; `idle_s`: seconds
    since the server last had work; `since_s`: seconds since the last training began, None before the first.
    """
    if records < MIN_ROWS or idle_s < _IDLE_S:
        return False
    if since_s is None:
        return True
    return since_s >= _APART_S and records - trained >= max(MIN_ROWS, _GROWTH * trained)


@dataclass(frozen=True, slots=True)
class Ended:
    """A training has ended."""

    code: int
    """Exit code of `learning.train`; negative when a signal ended it."""
    message: str
    """What it said last."""
    path: Path
    """The file that it wrote when the code is 0; `store.load` reads it."""


class Trainer:
    """Starts trainings when they are due. Nothing here waits; times are seconds of any steady clock."""

    def __init__(self, history: Path, folder: Path, model: str | None = None) -> None:
        """Learns from the segments of `model` in `history`, of all without one; files go to `folder`."""
        self.path = folder / file_name(model)
        self._command = [sys.executable, "-m", "astraea_local.learning.train"]
        self._command += ["--history", str(history), "--out", str(folder)]
        if model is not None:
            self._command += [f"--model={model}"]
        self._available = available()
        self._running: _Running | None = None
        self._trained = 0
        self._started: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether a training is under way; its end is reported by `tick`."""
        return self._running is not None

    def tick(self, now: float, records: int, idle_s: float) -> Ended | None:
        """Reports a training that has ended, or starts one that is due; call it every few seconds.

        `records` is how many segments are recorded by now. Without torch nothing is ever started. Raises
        `OSError` when the process cannot be started; that counts as a training, so it is not tried at once.
        """
        if self._running is not None:
            return self._poll(self._running)
        since_s = None if self._started is None else now - self._started
        if self._available and is_due(records, self._trained, idle_s, since_s):
            self._started, self._trained = now, records
            self._running = _start(self._command)
        return None

    def close(self) -> None:
        """Kills a training that is under way; the file of the last one stays. May be called twice."""
        if self._running is not None:
            self._running.process.kill()
            self._running.process.wait()
            self._running.output.close()
            self._running = None

    def _poll(self, running: "_Running") -> Ended | None:
        code = running.process.poll()
        if code is None:
            return None
        running.output.seek(0)
        lines = running.output.read().decode(errors="replace").splitlines()
        self.close()
        return Ended(code, lines[-1] if lines else "", self.path)


@dataclass(frozen=True, slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    output: IO[bytes]


def _start(command: Sequence[str]) -> _Running:
    # A file, not a pipe: nobody would read a pipe while it runs, and a full one would stop it.
    output = tempfile.TemporaryFile()  # noqa: SIM115 - stays open for as long as the process runs
    try:
        # Ctrl-C in the server's terminal is for the server, which then ends this one: hence the session.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except BaseException:
        output.close()
        raise
    return _Running(process, output)
