"""The segments that wait, in order of priority, at a cost that hardly grows with their number.

A policy gives every waiting segment a `Key`; its score at a time is (time - since) / cost, so that it grows
by waiting, faster for what is cheap. HRRN is `since = arrival - T, cost = T`; an order that never changes is
`cost = 1` with whatever decides as `since`. Scores overtake each other as time passes, so no sorted list
stays sorted; but two of them cross at most once, at a time that is known beforehand. Each level is therefore
a knockout tournament whose results hold until then: a change or a crossing replays only the matches between
it and the final.
"""

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

# Results are looked at again this much, as a share, before the time computed for a crossing.
_MARGIN = 1e-9


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


@dataclass(eq=False, slots=True)
class _Entry:
    id: int
    key: Key
    arrived: float
    overdue_at: float
    leaf: int = 0
    """Its place in the tournament of its level; 0 once it is overdue."""


class WaitQueue:
    """Waiting segments by level, score, arrival and id; overdue ones before all others, by arrival.

    `now` never goes back from one call to the next.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._levels: dict[int, _Tournament] = {}
        self._due: list[tuple[float, int, _Entry]] = []
        """By the time at which they become overdue; entries that are gone stay in it for a while."""
        self._overdue: list[tuple[float, int]] = []
        self._now = 0.0
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
        entry = _Entry(segment, key, arrived, overdue_at)
        before = self._entries.get(segment)
        if before is not None and before.leaf and before.key.level == key.level:
            self._levels[key.level].replace(before, entry, self._now)
        else:
            if before is not None:
                self._take_out(before)
            self._levels.setdefault(key.level, _Tournament()).add(entry, self._now)
        self._entries[segment] = entry
        if overdue_at < math.inf:
            heapq.heappush(self._due, (overdue_at, next(self._stamps), entry))
            if len(self._due) > 64 + 2 * len(self._entries):
                self._due = [item for item in self._due if self._is_due(item[-1])]
                heapq.heapify(self._due)

    def remove(self, segment: int) -> None:
        """Takes a segment out, if it is there."""
        entry = self._entries.pop(segment, None)
        if entry is not None:
            self._take_out(entry)

    def is_overdue(self, segment: int, now: float) -> bool:
        """Whether it goes before all that are not."""
        return self._entries[segment].overdue_at <= now

    def best(
        self, now: float, count: int, *, skip: frozenset[int] = frozenset(), first_level_only: bool = False
    ) -> list[int]:
        """The first `count` segments that are not in `skip`, best first.

        `first_level_only`: only overdue ones and those of the first level that has others, skipped or not.
        """
        self._advance(now)
        levels = sorted(self._levels)
        if first_level_only:
            del levels[1:]
        order = itertools.chain(
            (segment for _arrived, segment in self._overdue),
            *(self._levels[level].ordered(now) for level in levels),
        )
        return list(itertools.islice((segment for segment in order if segment not in skip), count))

    def reaching(self, level: int, score: float, now: float) -> list[int]:
        """Segments of a level, but for overdue ones, whose score has reached that value."""
        self._advance(now)
        found = self._levels.get(level)
        return [] if found is None else found.reaching(score, now)

    def _is_due(self, entry: _Entry) -> bool:
        return entry.leaf > 0 and self._entries.get(entry.id) is entry

    def _take_out(self, entry: _Entry) -> None:
        level = entry.key.level
        if not entry.leaf:
            del self._overdue[bisect_left(self._overdue, (entry.arrived, entry.id))]
        else:
            self._levels[level].remove(entry, self._now)
            if not len(self._levels[level]):
                del self._levels[level]

    def _advance(self, now: float) -> None:
        self._now = now
        while self._due and self._due[0][0] <= now:
            entry = heapq.heappop(self._due)[-1]
            if self._is_due(entry):
                self._take_out(entry)
                entry.leaf = 0
                insort(self._overdue, (entry.arrived, entry.id))
        for level in self._levels.values():
            level.advance(now)


class _Tournament:
    """The entries of one level: a binary tree with them as leaves, in every node the best below it."""

    def __init__(self) -> None:
        self._resize(2)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: _Entry, now: float) -> None:
        if not self._free:
            entries = [e for e in self._best[self._size :] if e is not None]
            self._resize(2 * self._size)
            for known in entries:
                known.leaf = self._free.pop()
                self._best[known.leaf] = known
            for node in range(self._size - 1, 0, -1):
                self._play(node, now)
        self._count += 1
        entry.leaf = self._free.pop()
        self._best[entry.leaf] = entry
        self._climb(entry.leaf, now)

    def replace(self, before: _Entry, entry: _Entry, now: float) -> None:
        entry.leaf = before.leaf
        self._best[entry.leaf] = entry
        self._climb(entry.leaf, now)

    def remove(self, entry: _Entry, now: float) -> None:
        self._count -= 1
        self._free.append(entry.leaf)
        self._best[entry.leaf] = None
        self._climb(entry.leaf, now)

    def advance(self, now: float) -> None:
        """Replays the matches whose results no longer hold."""
        if self._until[1] <= now:
            self._replay(1, now)

    def ordered(self, now: float) -> Iterator[int]:
        """All ids, best first."""
        best = self._best
        open_: list[tuple[float, float, int, int]] = []

        def look_at(node: int) -> None:
            entry = best[node]
            if entry is not None:
                heapq.heappush(open_, (-entry.key.score(now), entry.arrived, entry.id, node))

        look_at(1)
        while open_:
            _score, _arrived, segment, top = heapq.heappop(open_)
            yield segment
            winner = best[top]
            assert winner is not None
            node = winner.leaf
            while node != top:
                look_at(node ^ 1)
                node >>= 1

    def reaching(self, score: float, now: float) -> list[int]:
        found = []
        nodes = [1]
        while nodes:
            node = nodes.pop()
            entry = self._best[node]
            if entry is not None and entry.key.score(now) >= score:
                if node >= self._size:
                    found.append(entry.id)
                else:
                    nodes += (2 * node + 1, 2 * node)
        return found

    def _resize(self, size: int) -> None:
        self._size = size
        self._best: list[_Entry | None] = [None] * (2 * size)
        self._until = [math.inf] * (2 * size)
        """Times at which the results may change at and below each node."""
        self._free = list(range(2 * size - 1, size - 1, -1))

    def _climb(self, leaf: int, now: float) -> None:
        node = leaf >> 1
        while node and self._play(node, now):
            node >>= 1

    def _replay(self, node: int, now: float) -> None:
        for child in (2 * node, 2 * node + 1):
            if self._until[child] <= now:
                self._replay(child, now)
        self._play(node, now)

    def _play(self, node: int, now: float) -> bool:
        """Whether anything changed that the nodes above must know."""
        child = 2 * node
        one, two = self._best[child], self._best[child + 1]
        until = min(self._until[child], self._until[child + 1])
        if one is None or two is None:
            winner = one or two
        else:
            first, second = one.key.score(now), two.key.score(now)
            if second > first or (second == first and (two.arrived, two.id) < (one.arrived, one.id)):
                one, two = two, one
            winner = one
            until = min(until, _overtaken_at(one.key, two.key))
        if winner is self._best[node] and until == self._until[node]:
            return False
        self._best[node], self._until[node] = winner, until
        return True


def _overtaken_at(first: Key, second: Key) -> float:
    """Until when the one that is ahead stays ahead for certain."""
    if second.cost >= first.cost:
        return math.inf
    crossing = first.since + first.cost * (first.since - second.since) / (second.cost - first.cost)
    return crossing - _MARGIN * max(1.0, abs(crossing))
