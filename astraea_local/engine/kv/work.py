"""Operations on parts that wait for the disk: in order, and never two of one part at a time."""

import threading
from dataclasses import dataclass

from astraea_local.engine.kv.files import Bytes


@dataclass(slots=True, eq=False)
class Operation:
    """Something to be done with one part's file."""

    part_id: str


@dataclass(slots=True, eq=False)
class Writing(Operation):
    """Makes the file."""

    head: bytes
    data: memoryview
    length: int
    """Bytes of the whole file."""
    used_at: float


@dataclass(slots=True, eq=False)
class Reading(Operation):
    """Fills a buffer from the file."""

    into: Bytes


@dataclass(slots=True, eq=False)
class Removing(Operation):
    """Removes the file."""


class WorkQueue:
    """What was asked for and is not done, oldest first.

    A thread takes the oldest operation of its kind, once no older one is about the same part. The oldest of
    all can always be taken, so nothing waits forever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._waiting: list[Operation] = []
        self._running: list[Operation] = []

    def put(self, operation: Operation) -> bool:
        """Adds an operation. False when the queue is closed."""
        with self._changed:
            if self._open:
                self._waiting.append(operation)
                self._changed.notify_all()
            return self._open

    def take(self, *kinds: type[Operation]) -> Operation | None:
        """The next operation of these kinds; waits for one. None: the queue is closed and holds no more."""
        with self._changed:
            while True:
                position = next((i for i, op in enumerate(self._waiting) if isinstance(op, kinds)), None)
                if position is None:
                    if not self._open:
                        return None
                else:
                    operation = self._waiting[position]
                    older = self._running + self._waiting[:position]
                    if all(op.part_id != operation.part_id for op in older):
                        self._running.append(self._waiting.pop(position))
                        return operation
                self._changed.wait()

    def done(self, operation: Operation) -> None:
        """Says that an operation that was taken has ended."""
        with self._changed:
            self._running.remove(operation)
            self._changed.notify_all()

    def unfinished(self) -> list[Operation]:
        """All that is not done, oldest first."""
        with self._changed:
            return self._running + self._waiting

    def close(self) -> None:
        """Takes nothing more in; what waits is still done."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def clear(self) -> list[Operation]:
        """Takes back and returns what no thread has begun with."""
        with self._changed:
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
            return waiting
