"""The engine's end of the pipe to its front."""

import pickle
from multiprocessing.connection import Connection

from astraea_local.engine.messages import ToEngine, ToFront


class FrontGone(Exception):
    """The other end of the pipe is closed."""


class Pipe:
    """Lists of messages over a `multiprocessing` connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, messages: list[ToFront]) -> None:
        """Sends all at once. Raises `FrontGone`."""
        if messages:
            try:
                self._connection.send_bytes(pickle.dumps(messages, protocol=pickle.HIGHEST_PROTOCOL))
            except OSError:
                raise FrontGone from None

    def receive(self, wait_s: float) -> list[ToEngine]:
        """Everything that has arrived, after waiting for at most `wait_s`. Raises `FrontGone`."""
        received: list[ToEngine] = []
        try:
            while self._connection.poll(0 if received else wait_s):
                received.extend(pickle.loads(self._connection.recv_bytes()))  # noqa: S301 - our own parent
        except (EOFError, OSError):
            raise FrontGone from None
        return received
