"""Which idle KV gives way, whether it is parked or dropped, and for how long it is worth keeping."""

from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import Eviction, Fate, IdleKv, best_ttl, evict

_MIN = 64
_STATES = st.lists(
    st.builds(
        IdleKv,
        holder=st.integers(0, 100),
        tokens=st.integers(1, 200),
        last_used=st.floats(0, 1000),
        useful=st.booleans(),
        covered=st.booleans(),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda state: state.holder,
)


def _evict(*states: IdleKv, can_park: bool = True) -> Eviction:
    choice = evict(states, min_tokens=_MIN, can_park=can_park)
    assert choice is not None
    return choice


def test_without_idle_states_nothing_gives_way() -> None:
    assert evict([], min_tokens=_MIN, can_park=True) is None


def test_worthless_then_finished_then_waiting_each_from_the_longest_unused() -> None:
    states = [
        IdleKv(0, 500, last_used=1.0, useful=True),
        IdleKv(1, 500, last_used=2.0, useful=True),
        IdleKv(2, 500, last_used=3.0, useful=False),
        IdleKv(3, 500, last_used=4.0, useful=False),
        IdleKv(4, 10, last_used=5.0, useful=True),
        IdleKv(5, 500, last_used=6.0, useful=True, covered=True),
    ]
    order = []
    while states:
        holder = _evict(*states).holder
        order.append(holder)
        states = [state for state in states if state.holder != holder]
    assert order == [4, 5, 2, 3, 0, 1]


def test_what_is_kept_elsewhere_is_dropped() -> None:
    choice = _evict(IdleKv(1, 500, 0.0, useful=True, covered=True))
    assert (choice.fate, choice.reason) == (Fate.DROP, "the same tokens are kept elsewhere")


def test_what_is_quickly_recomputed_is_dropped() -> None:
    choice = _evict(IdleKv(1, _MIN - 1, 0.0, useful=True))
    assert (choice.fate, choice.reason) == (Fate.DROP, "63 tokens are quicker recomputed than parked")
    assert _evict(IdleKv(1, _MIN, 0.0, useful=True)).fate is Fate.PARK


def test_what_may_be_wanted_again_is_parked() -> None:
    assert _evict(IdleKv(1, 500, 0.0, useful=True)).reason == "longest unused of the waiting jobs"
    finished = _evict(IdleKv(1, 500, 0.0, useful=False))
    assert (finished.fate, finished.reason) == (Fate.PARK, "longest unused of the finished jobs")


def test_without_parking_everything_is_dropped() -> None:
    choice = _evict(IdleKv(1, 500, 0.0, useful=True), can_park=False)
    assert (choice.fate, choice.reason) == (Fate.DROP, "parking is off or impossible")


@given(_STATES, st.booleans())
def test_a_waiting_jobs_only_copy_is_never_dropped_while_parking_works(
    states: list[IdleKv], can_park: bool
) -> None:
    choice = _evict(*states, can_park=can_park)
    victim = next(state for state in states if state.holder == choice.holder)
    precious = not victim.covered and victim.tokens >= _MIN
    assert (choice.fate is Fate.PARK) == (precious and can_park)
    if precious and victim.useful:
        assert all(state.useful and not state.covered and state.tokens >= _MIN for state in states)


_WAITS = st.lists(st.tuples(st.floats(1e-3, 1e4), st.floats(1e-3, 1)), min_size=1, max_size=12).map(
    lambda pairs: Distribution.of([p for p, _ in sorted(pairs)], [w for _, w in sorted(pairs)])
)


@given(_WAITS, st.floats(0, 1e5), st.lists(st.floats(0, 2e4), max_size=10))
def test_no_other_time_to_live_gains_more(wait: Distribution, missed_s: float, times: list[float]) -> None:
    def gain(ttl: float) -> float:
        return (1 - wait.beyond(ttl)) * missed_s - ttl

    best = best_ttl(wait, missed_s)
    slack = 1e-9 * (1 + missed_s)
    assert all(gain(best) >= gain(time) - slack for time in (0.0, *wait.points, *times))
    assert best == 0.0 or best in wait.points


def test_kv_is_held_for_as_long_as_the_next_return_is_worth_it() -> None:
    wait = Distribution.of([1.0, 2.0, 30.0, 1000.0])
    assert best_ttl(wait, 3.0) == 0.0
    assert best_ttl(wait, 5.0) == 2.0
    assert best_ttl(wait, 100.0) == 2.0
    assert best_ttl(wait, 120.0) == 30.0
    assert best_ttl(wait, 1e5) == 1000.0
