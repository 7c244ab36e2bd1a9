"""Nothing outlives the call."""

from astraea_local.scheduler.retention import Move
from astraea_local.scheduler.retention.drop import Drop
from tests.scheduler.retention.states import idle, situation


def test_it_is_dropped_when_the_call_ends() -> None:
    assert Drop().idle(idle(wait=0.001), situation()).move is Move.DROP
    assert Drop().idle(idle(wait=None, useful=False), situation()).move is Move.DROP


def test_what_gave_up_its_slot_is_overwritten_from_the_longest_unused_on() -> None:
    choice = Drop().gives_way([idle(0, since=2.0, wait=None), idle(1, since=1.0, wait=None)], situation())
    assert choice is not None
    assert (choice.holder, choice.move) == (1, Move.DROP)
