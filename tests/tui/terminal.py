"""A program in a terminal of its own, driven as a person would."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pytest

_ROOT = Path(__file__).parents[2]
_ESCAPES = re.compile(r"\x1b(\[[0-9;?<>=$]*[ -/]*[@-~]|[\]P][^\x07\x1b]*(\x07|\x1b\\)|[()].|.)")


class Terminal:
    """The command line in a terminal of 120x40; what it writes is kept.

    It is not the controlling terminal, so no signal tells the program of its end.
    """

    def __init__(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self._main, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "astraea_local", *map(str, arguments)],
            stdin=end,
            stdout=end,
            stderr=end,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(_ROOT), **(environment or {})},
            start_new_session=True,
        )
        os.close(end)
        self._written = b""
        self._seen = 0
        self._vanishing = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._main, 1 << 16)
            except OSError:
                data = b""
            with self._news:
                self._written += data
                self._news.notify_all()
            if not data or self._vanishing:
                return

    @property
    def text(self) -> str:
        """What was written since the last key, without what moves and colours it."""
        return _ESCAPES.sub("", self._written[self._seen :].decode("utf-8", "replace"))

    def until(self, words: str, seconds: float = 60.0) -> None:
        """Waits until that was written since the last key; fails when the program ends before."""
        deadline = time.monotonic() + seconds
        with self._news:
            while words not in self.text:
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive() or not self._news.wait(left):
                    pytest.fail(f"{words!r} was not written; this was:\n{self.text[-3000:]}")

    def press(self, keys: str) -> None:
        """Types them."""
        self._seen = len(self._written)
        os.write(self._main, keys.encode())

    def vanish(self) -> None:
        """Closes the terminal as the program writes the answer to a key."""
        self._vanishing = True
        self.press("?")
        self._reader.join()
        os.close(self._main)

    def end(self, seconds: float = 60.0) -> tuple[int, list[str]]:
        """Waits for the program's end: its exit code, and the lines it wrote after it closed its screen."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        after = self._written.decode("utf-8", "replace").rpartition("\x1b[?1049l")[2]
        return code, [line for line in _ESCAPES.sub("", after).splitlines() if line.strip()]

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if not self._vanishing:
            os.close(self._main)
