"""The queue of those that wait, against sorting all of them."""

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from astraea_local.scheduler.queues import Key, WaitQueue

_SEGMENTS = st.integers(0, 12)
_LEVELS = st.integers(0, 2)
# Few different values, many of them within a few percent of each other: ties and near ties are frequent.
_TIMES = st.integers(-20, 60).map(lambda n: n / 4)
_COSTS = st.integers(64, 74).map(lambda n: n / 64) | st.sampled_from([0.001, 0.5, 2.0, 8.0, 1000.0])
_STEPS = st.integers(0, 40).map(lambda n: n / 4) | st.sampled_from([0.0, 100.0, 10_000.0])


@dataclass(frozen=True)
class _Waiting:
    id: int
    key: Key
    arrived: float
    overdue_at: float

    def score(self, now: float) -> Fraction:
        """Without rounding."""
        return (Fraction(now) - Fraction(self.key.since)) / Fraction(self.key.cost)


def _naive(waiting: list[_Waiting], now: float, *, first_level_only: bool = False) -> list[int]:
    overdue = sorted((w for w in waiting if w.overdue_at <= now), key=lambda w: (w.arrived, w.id))
    others = [w for w in waiting if w.overdue_at > now]
    if first_level_only:
        first = min((w.key.level for w in others), default=0)
        others = [w for w in others if w.key.level == first]
    others.sort(key=lambda w: (w.key.level, -w.score(now), w.arrived, w.id))
    return [w.id for w in (*overdue, *others)]


class QueueMachine(RuleBasedStateMachine):
    """Segments come, move and go while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitQueue()
        self.waiting: dict[int, _Waiting] = {}
        self.now = 0.0

    @rule(
        segments=st.lists(_SEGMENTS, min_size=1, unique=True),
        level=_LEVELS,
        since=_TIMES,
        cost=_COSTS,
        arrived=_TIMES,
        overdue_in=st.just(math.inf) | st.integers(-4, 100).map(lambda n: n / 4),
        data=st.data(),
    )
    def put(
        self,
        segments: list[int],
        level: int,
        since: float,
        cost: float,
        arrived: float,
        overdue_in: float,
        data: st.DataObject,
    ) -> None:
        for segment in segments:
            key = Key(level, self.now + since, cost)
            self.waiting[segment] = _Waiting(segment, key, arrived, self.now + overdue_in)
            self.queue.put(segment, key, arrived, self.now + overdue_in)
            cost = data.draw(_COSTS)
            since = data.draw(_TIMES)

    @rule(segment=_SEGMENTS)
    def remove(self, segment: int) -> None:
        self.waiting.pop(segment, None)
        self.queue.remove(segment)

    @rule(seconds=_STEPS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(0, 5), skip=st.frozensets(_SEGMENTS), first_level_only=st.booleans())
    def look(self, count: int, skip: frozenset[int], first_level_only: bool) -> None:
        expected = _naive(list(self.waiting.values()), self.now, first_level_only=first_level_only)
        found = self.queue.best(self.now, count, skip=skip, first_level_only=first_level_only)
        assert found == [i for i in expected if i not in skip][:count]

    @precondition(lambda self: self.waiting)
    @rule(level=_LEVELS, data=st.data())
    def who_has_reached(self, level: int, data: st.DataObject) -> None:
        score = data.draw(st.sampled_from([w.score(self.now) for w in self.waiting.values()]))
        limit = data.draw(st.sampled_from([float(score), 0.0, 1.0, 8.0]))
        expected = {
            w.id
            for w in self.waiting.values()
            if w.key.level == level and w.overdue_at > self.now and w.key.score(self.now) >= limit
        }
        found = self.queue.reaching(level, limit, self.now)
        assert len(found) == len(set(found))
        assert set(found) == expected

    @invariant()
    def it_knows_who_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        for waiting in self.waiting.values():
            assert waiting.id in self.queue
            assert self.queue.key(waiting.id) == waiting.key
            assert self.queue.is_overdue(waiting.id, self.now) == (waiting.overdue_at <= self.now)

    def teardown(self) -> None:
        assert self.queue.best(self.now, 99) == _naive(list(self.waiting.values()), self.now)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(deadline=None, max_examples=250, stateful_step_count=25)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-6, 1e6)), min_size=1, max_size=40),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=5),
)
def test_scores_descend_whatever_the_figures(keys: list[tuple[float, float]], times: list[float]) -> None:
    queue = WaitQueue()
    for number, (since, cost) in enumerate(keys):
        queue.put(number, Key(0, since, cost), 0.0)
    for now in sorted(times):
        scores = [queue.key(i).score(now) for i in queue.best(now, len(keys))]
        assert len(scores) == len(keys)
        for higher, lower in pairwise(scores):
            assert higher >= lower - 1e-9 * abs(lower)


def test_the_cheap_overtakes_at_the_moment_when_the_scores_cross() -> None:
    queue = WaitQueue()
    queue.put(1, Key(0, since=0.0, cost=1.04), arrived=0.0)
    queue.put(2, Key(0, since=1.0, cost=1.0), arrived=1.0)
    assert queue.best(25.99, 2) == [1, 2]
    assert queue.best(26.01, 2) == [2, 1]


def test_equal_scores_go_by_arrival_then_by_id() -> None:
    queue = WaitQueue()
    for number, arrived in ((3, 1.0), (1, 2.0), (2, 1.0)):
        queue.put(number, Key(0, 0.0, 1.0), arrived)
    assert queue.best(5.0, 3) == [2, 3, 1]


def test_the_overdue_of_the_lowest_level_goes_before_the_first_of_the_highest() -> None:
    queue = WaitQueue()
    queue.put(1, Key(0, -1e9, 1e-3), arrived=1.0)
    queue.put(2, Key(9, 1e9, 1e3), arrived=2.0, overdue_at=10.0)
    assert queue.best(9.9, 2) == [1, 2]
    assert queue.best(10.0, 2) == [2, 1]
    queue.put(2, Key(9, 1e9, 1e3), arrived=2.0, overdue_at=20.0)
    assert queue.best(11.0, 2) == [1, 2]


def test_only_the_first_level_means_the_first_with_anyone_who_waits() -> None:
    queue = WaitQueue()
    for number, level in ((1, 2), (2, 2), (3, 5)):
        queue.put(number, Key(level, float(number), 1.0), 0.0)
    assert queue.best(9.0, 9, first_level_only=True) == [1, 2]
    assert queue.best(9.0, 9, skip=frozenset([1, 2]), first_level_only=True) == []
    queue.remove(1)
    queue.remove(2)
    assert queue.best(9.0, 9, first_level_only=True) == [3]


def test_what_never_waited_has_no_key() -> None:
    queue = WaitQueue()
    queue.remove(1)
    assert 1 not in queue
    with pytest.raises(KeyError):
        queue.key(1)


def test_memory_follows_those_that_wait_not_those_that_ever_did() -> None:
    queue = WaitQueue()
    for number in range(20_000):
        queue.put(number % 10, Key(number % 7, float(number), 1.0 + number % 3), 0.0, 1e9 + number)
        queue.remove((number + 5) % 10)
    assert len(queue) == 5
    assert len(queue._due) <= 64 + 2 * 10 + 1
    assert len(queue._levels) <= 5
    for number in range(10):
        queue.remove(number)
    assert not queue._levels
    assert queue.best(0.0, 1) == []


def _comparisons(monkeypatch: pytest.MonkeyPatch, waiting: int) -> float:
    """Scores computed for each round in which one segment moves and the best sixteen are asked for."""
    rng = random.Random(1)
    queue = WaitQueue()
    for number in range(waiting):
        queue.put(number, Key(0, rng.uniform(-100, 0), rng.uniform(1.0, 1.08)), 0.0)
    queue.best(0.0, 1)
    calls = 0
    score = Key.score

    def counted(key: Key, now: float) -> float:
        nonlocal calls
        calls += 1
        return score(key, now)

    with monkeypatch.context() as patch:
        patch.setattr(Key, "score", counted)
        for number in range(500):
            queue.put(number % waiting, Key(0, 0.1 * number - 20, rng.uniform(1.0, 1.08)), 0.0)
            queue.best(0.1 * number, 16)
    return calls / 500


def test_the_best_of_ten_thousand_are_found_by_looking_at_a_few_hundred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even when all cost nearly the same, which is when waiting changes the order most."""
    assert _comparisons(monkeypatch, 10_000) < 300
