"""The event log: the engine's own lines, and what clients see of them over all lives of the engine."""

import time
from collections import deque
from collections.abc import Iterable

from astraea_local.frame import Event, EventLevel

_LINES = 200


class EngineLog:
    """The latest lines of one life of the engine, numbered from one."""

    def __init__(self) -> None:
        self._lines: deque[Event] = deque(maxlen=_LINES)
        self._last = 0

    @property
    def lines(self) -> list[Event]:
        """Oldest first."""
        return list(self._lines)

    def note(self, level: EventLevel, text: str) -> None:
        """Adds a line."""
        self._last += 1
        self._lines.append(Event(id=self._last, at=time.time(), level=level, text=text))


class EventLog:
    """The latest lines of the engine and of the front, numbered without gaps.

    Lines that the engine dropped before they were seen leave a gap of as many numbers, so that a client that
    follows the numbers knows that it missed some.
    """

    def __init__(self) -> None:
        self._lines: deque[Event] = deque(maxlen=_LINES)
        self._last = 0
        self._seen = 0
        """The engine's own number of its latest line."""

    @property
    def lines(self) -> list[Event]:
        """Oldest first."""
        return list(self._lines)

    def add(self, line: Event) -> None:
        """Adds a line of the front."""
        self._last += 1
        self._lines.append(line.model_copy(update={"id": self._last}))

    def take(self, lines: Iterable[Event]) -> list[Event]:
        """Adds those lines of the engine that are new; returns all, oldest first."""
        for line in lines:
            if line.id > self._seen:
                self._last += line.id - self._seen - 1
                self._seen = line.id
                self.add(line)
        return self.lines

    def begin_life(self) -> None:
        """The next lines are those of another engine, which counts from one again."""
        self._seen = 0
