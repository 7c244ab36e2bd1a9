"""Where the KV of waiting jobs goes, by each rule of the literature and our own."""

import pytest

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import Fate
from astraea_local.scheduler.speeds import Speeds
from astraea_local.scheduler.tiers import (
    Adaptive,
    DropAlways,
    Idle,
    KeepUntilNeeded,
    Lru,
    Paper,
    Pressure,
    Tiering,
    Ttl,
)

# Computing a token takes 10 ms; moving it takes 1 ms each way.
_FAST_MOVES = Speeds(prefill_token_s=0.01, kv_token_bytes=1000, save_bytes_s=1e6, restore_bytes_s=1e6)
# Moving takes longer than computing.
_SLOW_MOVES = Speeds(prefill_token_s=0.01, kv_token_bytes=1000, save_bytes_s=1e5, restore_bytes_s=1e5)


def _idle(
    job: str,
    tokens: int = 100,
    *,
    since: float = 0.0,
    wait: float | Distribution | None = 1.0,
    kept_until: float = 0.0,
    created: float = 0.0,
) -> Idle:
    known = Distribution.of([float(wait)]) if isinstance(wait, int | float) else wait
    return Idle(job, tokens, since, known, kept_until, created)


def _pressure(used: int = 1000, wanted: int = 500, speeds: Speeds = _FAST_MOVES) -> Pressure:
    return Pressure(used, 1000, wanted, speeds)


def _choice(
    tiering: Tiering, *idle: Idle, now: float = 10.0, speeds: Speeds = _FAST_MOVES
) -> tuple[str, Fate]:
    first, fate = tiering.gives_way(idle, now, _pressure(speeds=speeds))
    return first.job, fate


@pytest.mark.parametrize(
    ("tiering", "begins", "fate"),
    [(DropAlways(), Fate.DROP, Fate.DROP), (KeepUntilNeeded(), None, Fate.DROP), (Lru(), None, Fate.PARK)],
)
def test_the_simple_ones_take_the_longest_unused(tiering: Tiering, begins: Fate | None, fate: Fate) -> None:
    assert tiering.begins(_idle("a", wait=1e6), _pressure()) is begins
    assert _choice(tiering, _idle("old", 5, wait=1.0), _idle("new", 5000, wait=1e6)) == ("old", fate)


def test_only_without_prefix_caching_nothing_is_shared() -> None:
    tierings: list[Tiering] = [DropAlways(), KeepUntilNeeded(), Lru(), Paper(0.8), Ttl(), Adaptive()]
    assert [t.name for t in tierings if not t.shares] == ["drop"]
    assert len({t.name for t in tierings}) == len(tierings)


@pytest.mark.parametrize(
    ("wait", "speeds", "fate"),
    [
        # Of 100 tokens while 500 want to run: keep = wait x 100, drop = 1 s x 500, swap = 2 x 0.1 s x 500.
        (0.9, _FAST_MOVES, None),
        (1.0, _FAST_MOVES, None),
        (1.1, _FAST_MOVES, Fate.PARK),
        # Moving takes 1 s: drop = 500, swap = 1000.
        (4.9, _SLOW_MOVES, None),
        (5.0, _SLOW_MOVES, None),
        (5.1, _SLOW_MOVES, Fate.DROP),
    ],
)
def test_the_paper_takes_the_least_waste_of_its_three_equations(
    wait: float, speeds: Speeds, fate: Fate | None
) -> None:
    assert Paper(0.8).begins(_idle("a", wait=wait), _pressure(speeds=speeds)) is fate


def test_the_paper_drops_where_moving_costs_the_same() -> None:
    same = Speeds(prefill_token_s=0.01, kv_token_bytes=1000, save_bytes_s=2e5)
    assert Paper(0.8).begins(_idle("a", wait=100.0), _pressure(speeds=same)) is Fate.DROP
    assert _choice(Paper(0.8), _idle("a"), speeds=same) == ("a", Fate.DROP)


def test_the_paper_keeps_below_its_watermark_and_while_nobody_wants_the_cells() -> None:
    long = _idle("a", wait=1e6)
    assert Paper(0.8).begins(long, _pressure(used=799)) is None
    assert Paper(0.8).begins(long, _pressure(used=800)) is Fate.PARK
    assert Paper(0.8).begins(long, _pressure(wanted=0)) is Fate.DROP
    assert Paper(0.8).begins(_idle("a", wait=None), _pressure()) is None


def test_of_the_paper_the_largest_waste_gives_way() -> None:
    states = (_idle("a", 100, wait=5.0), _idle("b", 1000, wait=0.4), _idle("c", 50, wait=11.0))
    assert _choice(Paper(0.8), *states) == ("c", Fate.PARK)
    assert _choice(Paper(0.8), *states[:2]) == ("a", Fate.PARK)
    assert _choice(Paper(0.8), *states, speeds=_SLOW_MOVES) == ("c", Fate.DROP)
    slot, tool = _idle("slot", 9000, wait=None), _idle("tool", 1, wait=0.1)
    assert _choice(Paper(0.8), slot, tool) == ("tool", Fate.PARK)


def test_what_is_past_its_time_to_live_goes_first_from_the_longest_unused() -> None:
    states = (
        _idle("kept", kept_until=10.0, created=9.0),
        _idle("expired", kept_until=9.9, created=1.0),
        _idle("expired later", kept_until=9.0, created=2.0),
    )
    assert Ttl().begins(states[1], _pressure()) is None
    assert _choice(Ttl(), *states) == ("expired", Fate.DROP)


def test_within_their_time_to_live_the_latest_job_goes_first() -> None:
    states = (
        _idle("first", kept_until=20.0, created=1.0),
        _idle("latest", kept_until=30.0, created=3.0),
        _idle("second", kept_until=10.0, created=2.0),
    )
    assert _choice(Ttl(), *states) == ("latest", Fate.DROP)


def test_what_waits_for_a_slot_has_no_time_to_live() -> None:
    slot = _idle("slot", wait=None, created=1.0)
    assert _choice(Ttl(), slot, _idle("tool", kept_until=20.0, created=2.0)) == ("tool", Fate.DROP)
    assert _choice(Ttl(), _idle("tool", kept_until=20.0, created=0.5), slot) == ("slot", Fate.DROP)


def test_who_is_expected_back_last_gives_way() -> None:
    assert _choice(Adaptive(), _idle("soon", wait=20.0), _idle("late", wait=60.0)) == ("late", Fate.PARK)
    # Both were to wait 60 s; one has waited for most of it.
    states = (_idle("soon", since=-45.0, wait=60.0), _idle("late", since=5.0, wait=60.0))
    assert _choice(Adaptive(), *states) == ("late", Fate.PARK)


def test_a_wait_that_goes_on_may_go_on_for_long() -> None:
    heavy = Distribution.of([1.0] * 99 + [1000.0])
    unsure, steady = _idle("unsure", wait=heavy), _idle("steady", wait=30.0)
    assert _choice(Adaptive(), unsure, steady, now=0.5) == ("steady", Fate.PARK)
    assert _choice(Adaptive(), unsure, steady, now=2.0) == ("unsure", Fate.PARK)


def test_who_waits_for_a_slot_gives_way_only_to_others_of_the_same_kind() -> None:
    slot, tool = _idle("slot", 5000, wait=None), _idle("tool", 10, wait=11.0)
    assert _choice(Adaptive(), slot, tool) == ("tool", Fate.PARK)
    assert _choice(Adaptive(), slot, _idle("another", 9000, wait=None)) == ("slot", Fate.PARK)


def test_what_costs_least_to_bring_back_gives_way_among_those_expected_together() -> None:
    """A base cost of prefill makes short states dear for what they free."""
    speeds = Speeds(prefill_base_s=1.0, prefill_token_s=0.001, kv_token_bytes=1000, save_bytes_s=1e3)
    states = (_idle("short", 100, wait=50.0), _idle("long", 1000, wait=50.0))
    assert _choice(Adaptive(), *states, speeds=speeds) == ("long", Fate.DROP)
    assert _choice(Adaptive(), *reversed(states), speeds=speeds) == ("long", Fate.DROP)


def test_it_is_parked_where_moving_is_quicker_than_computing() -> None:
    assert _choice(Adaptive(), _idle("a"), speeds=_FAST_MOVES) == ("a", Fate.PARK)
    assert _choice(Adaptive(), _idle("a"), speeds=_SLOW_MOVES) == ("a", Fate.DROP)
