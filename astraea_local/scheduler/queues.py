"""The segments that wait, in order of priority, at a cost that does not grow with their number.

A policy gives every waiting segment a `Key`; its score at a time is (time - since) / cost, so that it grows
by waiting, faster for what is cheap. HRRN is `since = arrival - T, cost = T`; an order that never changes is
`cost = 1` with whatever decides as `since`. Scores overtake each other as time passes, so no sorted list
stays sorted; but among segments of equal cost the order is fixed. Segments are therefore kept in one heap
for each level and cost (rounded to 8 %), and the best one is the best of the heaps' first.
"""

import heapq
import itertools
import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

_COST_STEP = math.log(1.08)
_LEAST_COST = 1e-9


@dataclass(frozen=True, slots=True)
class Key:
    """A place in the order, valid until something happens to the segment or its job."""

    level: int
    """Queue, 0 first."""
    since: float
    """Time from which its waiting counts."""
    cost: float
    """What its waiting is divided by; above 0."""

    def score(self, now: float) -> float:
        """Higher runs first, inside a level."""
        return (now - self.since) / self.cost


@dataclass(frozen=True, slots=True)
class _Entry:
    id: int
    key: Key
    arrived: float
    overdue_at: float
    stamp: int
    """Makes no two entries compare equal."""


_Item = tuple[float, float, int, int, _Entry]
_Heap = list[_Item]


class WaitQueue:
    """Waiting segments by level, score, and arrival; overdue ones before all others, by arrival."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._levels: dict[int, dict[int, _Heap]] = {}
        self._due: _Heap = []
        """By the time at which they become overdue."""
        self._overdue: _Heap = []
        self._stale = 0
        self._stamps = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, segment: int) -> bool:
        return segment in self._entries

    def key(self, segment: int) -> Key:
        """The key it was put in with."""
        return self._entries[segment].key

    def put(self, segment: int, key: Key, arrived: float, overdue_at: float = math.inf) -> None:
        """Adds a segment, or moves it to another place."""
        if segment in self._entries:
            self._stale += 1
        entry = self._entries[segment] = _Entry(segment, key, arrived, overdue_at, next(self._stamps))
        self._insert(entry)
        if self._stale > 64 + 2 * len(self._entries):
            self._rebuild()

    def remove(self, segment: int) -> None:
        """Takes a segment out, if it is there."""
        if self._entries.pop(segment, None) is not None:
            self._stale += 1

    def is_overdue(self, segment: int, now: float) -> bool:
        """Whether it goes before all that are not."""
        return self._entries[segment].overdue_at <= now

    def best(
        self, now: float, count: int, *, skip: frozenset[int] = frozenset(), first_level_only: bool = False
    ) -> list[int]:
        """The first `count` segments that are not in `skip`, best first."""
        chosen: list[int] = []
        with closing(self._ordered(now, first_level_only)) as order:
            while len(chosen) < count and (segment := next(order, None)) is not None:
                if segment not in skip:
                    chosen.append(segment)
        return chosen

    def reaching(self, level: int, score: float, now: float) -> list[int]:
        """Segments of a level whose score has reached that value."""
        found = []
        for heap in self._levels.get(level, {}).values():
            popped = []
            # All of a heap cost the same within 8 %: behind the first that falls short by more, all do.
            while (head := self._head(heap)) is not None and head.key.score(now) * 1.08 >= score:
                popped.append(heapq.heappop(heap))
                if head.key.score(now) >= score:
                    found.append(head.id)
            for item in popped:
                heapq.heappush(heap, item)
        return found

    def _insert(self, entry: _Entry) -> None:
        bucket = round(math.log(max(entry.key.cost, _LEAST_COST)) / _COST_STEP)
        heap = self._levels.setdefault(entry.key.level, {}).setdefault(bucket, [])
        heapq.heappush(heap, (entry.key.since, entry.arrived, entry.id, entry.stamp, entry))
        if entry.overdue_at < math.inf:
            heapq.heappush(self._due, (entry.overdue_at, entry.arrived, entry.id, entry.stamp, entry))

    def _rebuild(self) -> None:
        self._levels.clear()
        self._due.clear()
        self._overdue.clear()
        self._stale = 0
        for entry in self._entries.values():
            self._insert(entry)

    def _head(self, heap: _Heap) -> _Entry | None:
        while heap:
            entry = heap[0][-1]
            if self._entries.get(entry.id) is entry:
                return entry
            heapq.heappop(heap)
        return None

    def _ordered(self, now: float, first_level_only: bool) -> Generator[int, None, None]:
        """All segments, best first; the heaps are restored when the caller stops."""
        while (head := self._head(self._due)) is not None and head.overdue_at <= now:
            heapq.heappop(self._due)
            heapq.heappush(self._overdue, (head.arrived, head.arrived, head.id, head.stamp, head))
        taken: list[tuple[_Heap, _Item]] = []
        seen: set[int] = set()
        try:
            while (head := self._head(self._overdue)) is not None:
                taken.append((self._overdue, heapq.heappop(self._overdue)))
                seen.add(head.id)
                yield head.id
            for level in sorted(self._levels):
                found = False
                for segment in self._of_level(level, now, taken):
                    found = True
                    if segment not in seen:
                        yield segment
                if found and first_level_only:
                    return
        finally:
            for heap, item in taken:
                heapq.heappush(heap, item)

    def _of_level(
        self, level: int, now: float, taken: list[tuple[_Heap, _Item]]
    ) -> Generator[int, None, None]:
        heaps = self._levels[level]
        heads: list[tuple[float, float, int, _Heap]] = []
        for bucket in list(heaps):
            heap = heaps[bucket]
            if (head := self._head(heap)) is None:
                del heaps[bucket]
            else:
                heads.append((-head.key.score(now), head.arrived, head.id, heap))
        heapq.heapify(heads)
        while heads:
            _score, _arrived, segment, heap = heads[0]
            taken.append((heap, heapq.heappop(heap)))
            if (head := self._head(heap)) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (-head.key.score(now), head.arrived, head.id, heap))
            yield segment
