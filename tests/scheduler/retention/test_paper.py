"""Astraea's section 4.4: watermark, then the least waste."""

import pytest

from astraea_local.scheduler.retention import IdleKv, Move
from astraea_local.scheduler.retention.paper import Paper
from astraea_local.scheduler.speeds import Speeds
from tests.scheduler.retention.states import FAST_MOVES, SLOW_MOVES, idle, situation

PAPER = Paper(0.8)


def choice(*found: IdleKv, speeds: Speeds = FAST_MOVES) -> tuple[int, Move]:
    chosen = PAPER.gives_way(found, situation(speeds=speeds))
    assert chosen is not None
    return chosen.holder, chosen.move


@pytest.mark.parametrize(
    ("wait", "speeds", "move"),
    [
        # Of 100 tokens while 500 want to run: keep = wait x 100, drop = 1 s x 500, swap = 2 x 0.1 s x 500.
        (0.9, FAST_MOVES, Move.KEEP),
        (1.0, FAST_MOVES, Move.KEEP),
        (1.1, FAST_MOVES, Move.RAM),
        # Moving takes 1 s: drop = 500, swap = 1000.
        (4.9, SLOW_MOVES, Move.KEEP),
        (5.0, SLOW_MOVES, Move.KEEP),
        (5.1, SLOW_MOVES, Move.DROP),
    ],
)
def test_the_least_waste_of_its_three_equations(wait: float, speeds: Speeds, move: Move) -> None:
    assert PAPER.idle(idle(wait=wait), situation(speeds=speeds)).move is move


def test_the_equations_are_shown() -> None:
    reason = PAPER.idle(idle(wait=1.1), situation()).reason
    assert reason == "waste in token-seconds: keep 110, drop 500, swap 100"


def test_it_is_dropped_where_moving_costs_the_same() -> None:
    same = Speeds(prefill_token_s=0.01, kv_token_bytes=1000, save_bytes_s=2e5)
    assert PAPER.idle(idle(wait=100.0), situation(speeds=same)).move is Move.DROP
    assert choice(idle(), speeds=same) == (0, Move.DROP)


def test_it_is_kept_below_the_watermark() -> None:
    long = idle(wait=1e6)
    assert PAPER.idle(long, situation(cells_used=799)).move is Move.KEEP
    assert PAPER.idle(long, situation(cells_used=800)).move is Move.RAM
    assert PAPER.idle(long, situation(wanted=0)).move is Move.DROP


def test_the_largest_waste_gives_way() -> None:
    states = (idle(0, 100, wait=5.0), idle(1, 1000, wait=0.4), idle(2, 50, wait=11.0))
    assert choice(*states) == (2, Move.RAM)
    assert choice(*states[:2]) == (0, Move.RAM)
    assert choice(*states, speeds=SLOW_MOVES) == (2, Move.DROP)
    assert choice(idle(0, 9000, wait=None), idle(1, 1, wait=0.1)) == (1, Move.RAM)


def test_without_room_in_ram_it_is_dropped() -> None:
    assert PAPER.idle(idle(wait=100.0), situation(ram_free=0)).move is Move.DROP
