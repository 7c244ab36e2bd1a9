"""Continuum's time-to-live."""

from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import IdleKv, Move, best_ttl
from astraea_local.scheduler.retention.ttl import Ttl
from tests.scheduler.retention.states import idle, situation, waits


def choice(*found: IdleKv) -> tuple[int, Move]:
    chosen = Ttl().gives_way(found, situation(now=10.0))
    assert chosen is not None
    return chosen.holder, chosen.move


def test_what_is_past_its_time_to_live_goes_first_from_the_longest_unused() -> None:
    states = (
        idle(0, kept_until=10.0, created=9.0),
        idle(1, kept_until=9.9, created=1.0),
        idle(2, kept_until=9.0, created=2.0),
    )
    assert Ttl().idle(states[1], situation()).move is Move.KEEP
    assert choice(*states) == (1, Move.DROP)


def test_within_their_time_to_live_the_latest_job_goes_first() -> None:
    states = (
        idle(0, kept_until=20.0, created=1.0),
        idle(1, kept_until=30.0, created=3.0),
        idle(2, kept_until=10.0, created=2.0),
    )
    assert choice(*states) == (1, Move.DROP)


def test_what_waits_for_a_slot_has_no_time_to_live() -> None:
    slot = idle(0, wait=None, created=1.0)
    assert choice(slot, idle(1, kept_until=20.0, created=2.0)) == (1, Move.DROP)
    assert choice(idle(1, kept_until=20.0, created=0.5), slot) == (0, Move.DROP)


@given(waits(), st.floats(0, 1e5), st.lists(st.floats(0, 2e4), max_size=10))
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
