"""The one formula: what holding, moving and bringing back costs, against summing it up by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import Move, ParkedKv, Situation
from astraea_local.scheduler.retention.costs import fetch_after, hold_for, holding, moves, rest_of
from astraea_local.scheduler.speeds import Speeds
from tests.scheduler.retention.states import idle, situation, situations, waits


def test_idle_tokens_slow_each_step_of_each_running_segment() -> None:
    speeds = Speeds(idle_token_s=1e-5)
    # 1,000 tokens add 10 ms to steps of 100 ms: each of three segments loses a tenth of its time.
    state = idle(tokens=1000)
    assert holding(state, situation(speeds=speeds, running=3)) == pytest.approx(0.3)
    assert holding(state, situation(speeds=speeds, running=3, taxed=False)) == 0.0
    assert holding(state, situation(speeds=speeds, running=0)) == 0.0


def test_an_idle_state_is_in_nobodys_way_whoever_waits() -> None:
    """It gives way as soon as it is asked to."""
    assert holding(idle(tokens=900), situation(waiting=2, wanted=400)) == 0.0


def test_a_full_pool_will_soon_be_asked_for_places_which_have_to_be_copied_first() -> None:
    levels = ("low", "normal", "high", "critical")
    # Copying 300 tokens takes 0.3 s; they are three tenths of the pool; once or twice in 30 s.
    rates = [holding(idle(tokens=300), situation(cells_level=level)) for level in levels]
    assert rates == pytest.approx([0.0, 0.0, 0.003, 0.006])
    parked = idle(tokens=300, new_tokens=0)
    assert holding(parked, situation(cells_level="critical")) == 0.0


def test_moves_stop_all_that_run_and_returns_one_more() -> None:
    # 100 tokens: 0.1 s each way, 1 s from disk, 1 s to recompute; two others run.
    found = moves(idle(tokens=100), situation(running=2), min_tokens=1)
    assert found == pytest.approx({Move.RAM: 0.5, Move.DISK: 1.5, Move.DROP: 3.0})
    alone = moves(idle(tokens=100), situation(running=0), min_tokens=1)
    assert alone == pytest.approx({Move.RAM: 0.2, Move.DISK: 1.2, Move.DROP: 1.0})


def test_only_new_tokens_are_copied() -> None:
    found = moves(idle(tokens=100, new_tokens=10), situation(running=2), min_tokens=1)
    assert found[Move.RAM] == pytest.approx(0.32)


def test_a_finished_job_seldom_returns() -> None:
    found = moves(idle(tokens=100, useful=False, wait=None), situation(running=2), min_tokens=1)
    assert found == pytest.approx({Move.RAM: 0.26, Move.DISK: 0.46, Move.DROP: 0.6})


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({}, {Move.RAM, Move.DISK, Move.DROP}),
        ({"ram_free": 99_999}, {Move.DISK, Move.DROP}),
        ({"ram_level": "high"}, {Move.DISK, Move.DROP}),
        ({"ram_level": "critical", "disk_free": 99_999}, {Move.DROP}),
        ({"can_park": False}, {Move.DROP}),
    ],
)
def test_what_is_possible(changes: dict[str, object], possible: set[Move]) -> None:
    assert set(moves(idle(tokens=100), situation(**changes), min_tokens=100)) == possible
    assert set(moves(idle(tokens=99), situation(**changes), min_tokens=100)) == {Move.DROP}


def test_what_is_parked_already_needs_no_room() -> None:
    covered = idle(tokens=100, new_tokens=0)
    found = moves(covered, situation(ram_free=0, disk_free=0, ram_level="critical"), min_tokens=1)
    assert found == pytest.approx({Move.RAM: 0.2, Move.DROP: 2.0})


@given(waits(), st.floats(0, 100), st.floats(0, 100), st.lists(st.floats(0, 2e4), max_size=8))
def test_no_other_time_to_hold_is_expected_to_cost_less(
    rest: Distribution, rate: float, move_s: float, times: list[float]
) -> None:
    def cost(hold: float) -> float:
        returns = zip(rest.points, rest.weights, strict=True)
        return math.fsum(w * (rate * min(t, hold) + (move_s if t > hold else 0.0)) for t, w in returns)

    hold, least = hold_for(rest, rate, move_s)
    slack = 1e-9 * (1 + move_s + rate * rest.points[-1])
    assert least == pytest.approx(cost(hold), rel=1e-6, abs=slack)
    assert all(least <= cost(time) + slack for time in (0.0, *rest.points, *times, math.inf))


@given(waits(), st.floats(0, 10), st.floats(1, 100), st.floats(0, 100))
def test_dearer_places_are_held_no_longer(
    rest: Distribution, rate: float, factor: float, move_s: float
) -> None:
    longer, _ = hold_for(rest, rate, move_s)
    shorter, least = hold_for(rest, rate * factor, move_s)
    # Of two times that cost the same, rounding chooses.
    same = factor * rate * rest.capped(longer) + rest.beyond(longer) * move_s
    assert shorter <= longer or least == pytest.approx(same, rel=1e-9)


@given(waits(), situations(), st.booleans(), st.lists(st.floats(0, 2e4), max_size=8))
def test_no_other_time_to_bring_it_back_is_expected_to_cost_less(
    wait: Distribution, at: Situation, on_disk: bool, times: list[float]
) -> None:
    kv = ParkedKv(tokens=500, on_disk=on_disk, since=at.now, wait=wait)
    latency = at.speeds.restore(500) + (at.speeds.disk_read(500) if on_disk else 0.0)
    calm = replace(at, cells_level="normal")
    rate = holding(idle(tokens=500), calm) + at.speeds.restore(500) * (at.running + 1) / 30.0

    def cost(start: float) -> float:
        ready = start + latency
        returns = zip(wait.points, wait.weights, strict=True)
        return math.fsum(
            w * (rate * max(0.0, t - ready) + min(latency, max(0.0, ready - t))) for t, w in returns
        )

    start = fetch_after(kv, wait, at)
    slack = 1e-9 * (1 + (1 + rate) * (wait.points[-1] + latency))
    assert all(cost(start) <= cost(time) + slack for time in (0.0, *wait.points, *times))


def test_what_is_left_of_a_wait() -> None:
    rest = rest_of(idle(wait=[5.0, 25.0, 45.0], since=0.0), 10.0)
    assert rest is not None
    assert rest.points == pytest.approx((15.0, 35.0))
    assert rest_of(idle(wait=None), 10.0) is None


def test_a_clock_that_went_back_changes_nothing() -> None:
    wait = Distribution.of([5.0])
    assert rest_of(idle(wait=wait, since=100.0), 10.0) == wait
