"""The default policy: lazy, then the cheapest move, and never dearer in expectation than any simple rule."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from astraea_local.profile import RetentionSettings
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import IdleKv, Move, ParkedKv, Situation, make
from astraea_local.scheduler.retention.costs import holding, moves
from tests.scheduler.retention.states import (
    FAST_MOVES,
    SLOW_MOVES,
    idle,
    situation,
    situations,
    states,
    waits,
)

ADAPTIVE = make("adaptive", RetentionSettings(min_tokens=64), watermark=1.0)
# Attending over 100 idle tokens takes as long as the rest of a step: each second of them costs a second.
HEAVY = replace(FAST_MOVES, idle_token_s=1e-3)
PRESSED = situation(now=0.0, speeds=HEAVY)


def choice(*found: IdleKv, **changes: object) -> tuple[int, Move]:
    chosen = ADAPTIVE.gives_way(found, situation(**changes))
    assert chosen is not None
    return chosen.holder, chosen.move


@pytest.mark.parametrize("changes", [{}, {"waiting": 4, "wanted": 8000}, {"cells_level": "normal"}])
def test_what_is_in_nobodys_way_stays(changes: dict[str, object]) -> None:
    verdict = ADAPTIVE.idle(idle(wait=1e6), situation(**changes))
    assert (verdict.move, verdict.until) == (Move.KEEP, None)
    assert verdict.reason == "in nobody's way until somebody asks for its place"


def test_a_quick_tool_causes_no_move_however_dear_the_place() -> None:
    grep = idle(tokens=2000, wait=[0.03, 0.06, 0.09])
    dear = situation(now=0.0, speeds=HEAVY, running=4, cells_level="critical")
    assert ADAPTIVE.idle(grep, dear).move is Move.KEEP


def test_a_full_pool_parks_what_will_be_long_before_somebody_waits_for_the_copy() -> None:
    """300 tokens: 0.9 s for the way out and back, 0.3 s of waiting for the copy, once in 100 s."""
    full = situation(now=0.0, cells_level="high")
    assert ADAPTIVE.idle(idle(tokens=300, wait=200.0), full).move is Move.KEEP
    assert ADAPTIVE.idle(idle(tokens=300, wait=400.0), full).move is Move.RAM


def test_a_long_wait_is_parked_at_once_and_explained() -> None:
    verdict = ADAPTIVE.idle(idle(wait=600.0), PRESSED)
    assert verdict.move is Move.RAM
    assert verdict.reason == (
        "the way to RAM and back costs 500 ms; "
        "holding costs 1 s/s, its job waits for a tool, for about 600 s more"
    )


def test_a_wait_that_is_mostly_short_is_held_for_as_long_as_the_short_ones_take() -> None:
    """Moving costs 0.5 s, and the place a second a second."""
    mostly = idle(wait=[0.1] * 9 + [600.0])
    verdict = ADAPTIVE.idle(mostly, PRESSED)
    assert verdict.move is Move.KEEP
    assert verdict.until == pytest.approx(0.1)
    assert ADAPTIVE.idle(mostly, replace(PRESSED, now=0.1)).move is Move.RAM
    # Taken back by the clock's rounding, it is the same moment still.
    assert ADAPTIVE.idle(mostly, replace(PRESSED, now=0.1 - 1e-12)).move is Move.RAM


def test_the_tax_of_a_unified_pool_is_paid_for_short_waits_only() -> None:
    """100 tokens add 10 ms to a step of 100 ms; moving costs 0.3 s."""
    taxed = replace(FAST_MOVES, idle_token_s=1e-4)
    at = situation(now=0.0, speeds=taxed)
    assert ADAPTIVE.idle(idle(wait=2.0), at).move is Move.KEEP
    assert ADAPTIVE.idle(idle(wait=10.0), at).move is Move.RAM
    assert ADAPTIVE.idle(idle(wait=10.0), situation(now=0.0, speeds=taxed, taxed=False)).move is Move.KEEP


@pytest.mark.parametrize(
    ("changes", "move"),
    [
        ({}, Move.RAM),
        ({"ram_level": "high"}, Move.DISK),
        ({"ram_free": 0}, Move.DISK),
        ({"ram_free": 0, "disk_free": 0}, Move.DROP),
        ({"ram_level": "critical", "disk_free": 0}, Move.DROP),
        ({"can_park": False}, Move.DROP),
        ({"speeds": replace(SLOW_MOVES, idle_token_s=1e-3)}, Move.DROP),
    ],
)
def test_ram_then_disk_then_dropped(changes: dict[str, object], move: Move) -> None:
    at = situation(**({"now": 0.0, "speeds": HEAVY} | changes))
    assert ADAPTIVE.idle(idle(wait=600.0), at).move is move
    assert choice(idle(wait=600.0), **changes) == (0, move)


def test_short_contexts_are_recomputed() -> None:
    assert choice(idle(tokens=64, wait=60.0)) == (0, Move.RAM)
    assert choice(idle(tokens=63, wait=60.0)) == (0, Move.DROP)


def test_what_is_parked_already_is_let_go_without_a_copy() -> None:
    chosen = ADAPTIVE.gives_way([idle(wait=60.0, new_tokens=0)], situation(ram_free=0, can_park=False))
    assert chosen is not None
    assert chosen.move is Move.RAM
    assert "what is parked already" in chosen.reason


def _expected(kv: IdleKv, at: Situation, wait: Distribution, hold: float, move: Move | None) -> float:
    """Delay of holding for `hold` seconds from now, then moving; summed over the wait's possible ends."""
    rate = holding(kv, at)
    moving = 0.0
    if move is not None:
        copied = 0.0 if move is Move.DROP else at.speeds.save(kv.new_tokens)
        moving = moves(kv, at, 64)[move] + rate * (at.step_s + copied)
    passed = at.now - kv.since
    left = [(t - passed, w) for t, w in zip(wait.points, wait.weights, strict=True) if t > passed]
    share = math.fsum(w for _t, w in left)
    return math.fsum(w * (rate * min(t, hold) + (moving if t > hold else 0.0)) for t, w in left) / share


@given(states(), waits(), situations())
def test_it_is_never_expected_to_cost_more_than_keeping_parking_or_dropping(
    kv: IdleKv, wait: Distribution, at: Situation
) -> None:
    kv = replace(kv, wait=wait, useful=True, pinned=False)
    assume(wait.points[-1] > at.now - kv.since + 1e-3)
    possible = moves(kv, at, 64)
    verdict = ADAPTIVE.idle(kv, at)
    if verdict.move is Move.KEEP:
        hold = math.inf if verdict.until is None else verdict.until - at.now + 1e-6
        ours = min(_expected(kv, at, wait, hold, move) for move in possible)
    else:
        ours = _expected(kv, at, wait, 0.0, verdict.move)
    others = [_expected(kv, at, wait, math.inf, None)]
    others += [_expected(kv, at, wait, 0.0, move) for move in possible]
    # Points within rounding of the present count as passed.
    slack = 1e-4 + 1e-6 * holding(kv, at) * wait.points[-1]
    assert ours <= min(others) * (1 + 1e-6) + slack


@given(states(), waits(), situations(), st.floats(1, 20))
def test_the_dearer_the_place_the_sooner_it_goes(
    kv: IdleKv, wait: Distribution, at: Situation, factor: float
) -> None:
    kv = replace(kv, wait=wait, pinned=False)
    at = replace(at, step_s=max(0.01, at.step_s))
    taxed = replace(at.speeds, idle_token_s=factor * at.speeds.idle_token_s)
    first, second = ADAPTIVE.idle(kv, at), ADAPTIVE.idle(kv, replace(at, speeds=taxed))
    if first.move is not Move.KEEP:
        assert second.move is not Move.KEEP
    elif second.move is Move.KEEP and first.until is not None:
        assert second.until is not None
        assert second.until <= first.until + 1e-9


@given(states(), situations())
def test_asked_again_in_time_it_moves_or_waits_on(kv: IdleKv, at: Situation) -> None:
    for _ in range(20):
        verdict = ADAPTIVE.idle(kv, at)
        if verdict.until is None:
            return
        assert verdict.until > at.now
        at = replace(at, now=verdict.until)


def test_who_is_expected_back_last_gives_way() -> None:
    assert choice(idle(0, wait=20.0), idle(1, wait=60.0)) == (1, Move.RAM)
    # Both were to wait 60 s; one has waited for most of it.
    assert choice(idle(0, since=-45.0, wait=60.0), idle(1, since=5.0, wait=60.0)) == (1, Move.RAM)


def test_a_wait_that_goes_on_may_go_on_for_long() -> None:
    unsure, steady = idle(0, wait=[1.0] * 99 + [1000.0]), idle(1, wait=30.0)
    assert choice(unsure, steady, now=0.5) == (1, Move.RAM)
    assert choice(unsure, steady, now=2.0) == (0, Move.RAM)


def test_who_waits_for_a_slot_gives_way_only_to_others_of_the_same_kind() -> None:
    slot, tool = idle(0, 5000, wait=None), idle(1, 100, wait=11.0)
    assert choice(slot, tool) == (1, Move.RAM)
    assert choice(slot, idle(1, 9000, wait=None, since=5.0)) == (0, Move.RAM)
    assert choice(idle(0, 5000, wait=None, since=5.0), idle(1, 9000, wait=None)) == (1, Move.RAM)


def test_finished_jobs_go_before_waiting_ones() -> None:
    finished = idle(0, wait=None, useful=False, since=9.0)
    assert choice(idle(1, wait=250.0), finished) == (0, Move.RAM)
    assert choice(idle(1, wait=None), finished) == (0, Move.RAM)


def test_what_is_parked_already_goes_before_what_has_to_be_copied() -> None:
    assert choice(idle(0, wait=30.0), idle(1, wait=25.0, new_tokens=0)) == (1, Move.RAM)
    assert choice(idle(0, wait=None), idle(1, wait=None, new_tokens=0, since=5.0)) == (1, Move.RAM)
    # Unless it is wanted again at once.
    assert choice(idle(0, wait=600.0), idle(1, wait=10.2, new_tokens=0)) == (0, Move.RAM)


def test_where_places_are_slots_the_smaller_state_is_cheaper_to_move() -> None:
    small, large = idle(0, 100, wait=60.0), idle(1, 4000, wait=70.0)
    assert choice(small, large, taxed=False) == (0, Move.RAM)
    assert choice(small, large, taxed=True) == (1, Move.RAM)


def test_an_eviction_is_explained() -> None:
    chosen = ADAPTIVE.gives_way([idle(wait=70.0)], situation())
    assert chosen is not None
    assert chosen.reason == (
        "its job waits for a tool, for about 60 s more; the way to RAM and back costs 300 ms"
    )


def parked(wait: Distribution | None, *, on_disk: bool = False) -> ParkedKv:
    return ParkedKv(tokens=100, on_disk=on_disk, since=0.0, wait=wait)


def test_it_is_back_just_before_its_job() -> None:
    sure = Distribution.of([60.0])
    assert ADAPTIVE.prefetch(parked(sure), situation(now=0.0)) == pytest.approx(59.9)
    assert ADAPTIVE.prefetch(parked(sure, on_disk=True), situation(now=0.0)) == pytest.approx(58.9)
    # It should have been back by now: as soon as there is room.
    assert ADAPTIVE.prefetch(parked(Distribution.of([10.05])), situation()) == pytest.approx(10.0)


def test_where_the_place_is_dear_it_is_brought_back_later() -> None:
    unsure = Distribution.of([1.0] * 2 + [10.0] * 8)
    calm, pressed = situation(now=0.0), replace(PRESSED, running=4)
    early, late = (ADAPTIVE.prefetch(parked(unsure, on_disk=True), at) for at in (calm, pressed))
    assert early is not None
    assert late is not None
    assert early < late


def test_what_cannot_be_foreseen_is_brought_back_on_demand() -> None:
    assert ADAPTIVE.prefetch(parked(None), situation()) is None
    off = make("adaptive", RetentionSettings(prefetch=False), watermark=1.0)
    assert off.prefetch(parked(Distribution.of([60.0])), situation(now=0.0)) is None
    assert off.idle(idle(wait=600.0), PRESSED).prefetch_at is None


def test_a_move_says_when_it_will_be_brought_back() -> None:
    verdict = ADAPTIVE.idle(idle(wait=600.0), PRESSED)
    assert verdict.prefetch_at == pytest.approx(599.9)
    finished = ADAPTIVE.idle(idle(wait=None, useful=False), PRESSED)
    assert (finished.move, finished.prefetch_at) == (Move.RAM, None)
