"""The longest unused to RAM."""

from astraea_local.scheduler.retention import Move
from astraea_local.scheduler.retention.lru import Lru
from tests.scheduler.retention.states import idle, situation


def test_it_stays_until_somebody_needs_the_place() -> None:
    assert Lru().idle(idle(wait=1e6), situation(waiting=5, cells_level="critical")).move is Move.KEEP


def test_the_longest_unused_is_parked() -> None:
    found = [idle(0, since=2.0, wait=1e6), idle(1, since=1.0, wait=0.1)]
    choice = Lru().gives_way(found, situation())
    assert choice is not None
    assert (choice.holder, choice.move) == (1, Move.RAM)


def test_what_ram_cannot_take_is_dropped() -> None:
    for at in (situation(ram_free=0), situation(can_park=False)):
        choice = Lru().gives_way([idle()], at)
        assert choice is not None
        assert choice.move is Move.DROP
        assert choice.reason.endswith("RAM cannot take it")
