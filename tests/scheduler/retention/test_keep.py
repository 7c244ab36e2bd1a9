"""Kept until it is overwritten."""

from astraea_local.scheduler.retention import Move
from astraea_local.scheduler.retention.keep import Keep
from tests.scheduler.retention.states import idle, situation


def test_it_stays_however_long_the_wait() -> None:
    assert Keep().idle(idle(wait=1e6), situation(waiting=5, cells_level="critical")).move is Move.KEEP


def test_the_longest_unused_is_overwritten() -> None:
    choice = Keep().gives_way([idle(0, since=2.0), idle(1, since=1.0, wait=0.1)], situation())
    assert choice is not None
    assert (choice.holder, choice.move) == (1, Move.DROP)
    assert choice.reason == "longest unused, its job waits for a tool; nothing is parked"
