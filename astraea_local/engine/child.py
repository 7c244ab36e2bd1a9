"""One engine process as its parent sees it: started, spoken to over a pipe, and seen to end."""

import asyncio
import contextlib
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from astraea_local.engine.libc import tuned
from astraea_local.engine.messages import ToEngine, ToFront
from astraea_local.engine.worker import EngineSpec

Target = Callable[[EngineSpec, Connection], None]


class Child:
    """A process that runs `target`; everything but the reading of the pipe happens in one asyncio loop."""

    def __init__(
        self,
        target: Target,
        spec: EngineSpec,
        *,
        on_messages: Callable[[list[ToFront]], None],
        on_death: Callable[[], None],
    ) -> None:
        """Starts it. `on_messages` and `on_death` are called in the running loop, the latter once, last."""
        self._on_messages = on_messages
        self._on_death = on_death
        self._heard = True
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=target, args=(spec, theirs), name="astraea-engine", daemon=True
        )
        with tuned():
            self._process.start()
        theirs.close()
        threading.Thread(target=self._read, name="engine-reader", daemon=True).start()

    def send(self, messages: list[ToEngine]) -> None:
        """Sends all at once. One that is dead gets nothing: `on_death` decides what becomes of it."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(pickle.dumps(messages, protocol=pickle.HIGHEST_PROTOCOL))

    def ignore(self) -> None:
        """What it still says, its death included, is not heard any more."""
        self._heard = False

    def reap(self) -> str:
        """Waits for the end of a process that has closed its pipe; how it ended, in words."""
        self._process.join()
        self._connection.close()
        return _exit_words(self._process.exitcode)

    def end(self, timeout_s: float) -> None:
        """Waits so long for a process that was told to stop, and kills it then."""
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _read(self) -> None:
        while True:
            try:
                messages = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own child
            except (EOFError, OSError):
                self._post(self._on_death)
                return
            if not self._post(self._on_messages, messages):
                return

    def _post(self, call: Callable[..., None], *args: object) -> bool:
        """Calls in the loop; False when that is closed, because the server is gone."""
        try:
            self._loop.call_soon_threadsafe(self._call_if_heard, call, *args)
        except RuntimeError:
            return False
        return True

    def _call_if_heard(self, call: Callable[..., None], *args: object) -> None:
        if self._heard:
            call(*args)


def _exit_words(code: int | None) -> str:
    if code is None:
        return "still exiting"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
