"""Ends the UI with its terminal, also when no hangup signal tells of it.

`nohup` keeps the signal away, as do launchers that do not pass it on, and a connection that died. Textual
then writes to nobody until its queue is full and its loop stands still, so this is a thread of its own.
"""

import os
import termios
import threading
from collections.abc import Callable
from types import TracebackType

_LOOK_S = 1.0
_PATIENCE_S = 3.0
_EXIT_CODE = 1


class TerminalWatch:
    """Looks after a terminal, as a context manager around the UI."""

    def __init__(self, leave: Callable[[], None], *, descriptor: int = 0) -> None:
        """`leave` asks the UI to end, from the thread of this; one that cannot is ended with its process."""
        self._leave = leave
        self._descriptor = descriptor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="terminal", daemon=True)

    def _watch(self) -> None:
        while _is_there(self._descriptor):
            if self._over.wait(_LOOK_S):
                return
        self._leave()
        if not self._over.wait(_PATIENCE_S):
            # A server that was started with this UI sees its pipe close, and ends in good order.
            os._exit(_EXIT_CODE)

    def __enter__(self) -> "TerminalWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()


def _is_there(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error:
        return False
    return True
