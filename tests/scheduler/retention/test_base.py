"""What holds for every retention policy."""

import pytest
from hypothesis import given

from astraea_local.profile import RetentionSettings
from astraea_local.scheduler.retention import RETENTIONS, IdleKv, Move, Retention, Situation, make
from astraea_local.scheduler.retention.base import duration
from tests.scheduler.retention.states import candidates, idle, situation, situations, states

ALL = [make(name, RetentionSettings(), watermark=0.95) for name in RETENTIONS]
each = pytest.mark.parametrize("retention", ALL, ids=list(RETENTIONS))


@each
@given(kv=states(), at=situations())
def test_what_is_pinned_stays(retention: Retention, kv: IdleKv, at: Situation) -> None:
    verdict = retention.idle(kv, at)
    if kv.pinned:
        assert (verdict.move, verdict.until, verdict.reason) == (Move.KEEP, None, "pinned")


@each
@given(kv=states(), at=situations())
def test_a_verdict_makes_sense_and_is_explained(retention: Retention, kv: IdleKv, at: Situation) -> None:
    verdict = retention.idle(kv, at)
    assert verdict.reason
    assert verdict == retention.idle(kv, at)
    if verdict.move is Move.KEEP:
        assert verdict.prefetch_at is None
        assert verdict.until is None or verdict.until > at.now
    else:
        assert verdict.until is None
        assert verdict.prefetch_at is None or verdict.prefetch_at >= at.now


@each
@given(found=candidates(), at=situations())
def test_one_that_is_not_pinned_gives_way(retention: Retention, found: list[IdleKv], at: Situation) -> None:
    choice = retention.gives_way(found, at)
    assert choice == retention.gives_way(found, at)
    if choice is None:
        assert all(kv.pinned for kv in found)
        return
    assert not found[choice.holder].pinned
    assert choice.move is not Move.KEEP
    assert choice.reason


@each
@given(kv=states(), at=situations())
def test_nothing_goes_where_there_is_no_room(retention: Retention, kv: IdleKv, at: Situation) -> None:
    size = kv.new_tokens * at.speeds.kv_token_bytes
    moves = {retention.idle(kv, at).move}
    choice = retention.gives_way([kv], at)
    if choice is not None:
        moves.add(choice.move)
    if size > at.ram_free or (kv.new_tokens and not at.can_park):
        assert Move.RAM not in moves
    if size > at.disk_free or not at.can_park:
        assert Move.DISK not in moves


@each
def test_what_waits_for_a_slot_is_not_moved_before_somebody_needs_its_place(retention: Retention) -> None:
    assert retention.idle(idle(wait=None), situation(waiting=3)).move is Move.KEEP


def test_only_without_prefix_caching_nothing_is_shared() -> None:
    assert [retention.name for retention in ALL if not retention.shares] == ["drop"]


def test_each_policy_is_found_by_its_name() -> None:
    assert [retention.name for retention in ALL] == list(RETENTIONS)
    assert all(retention.summary for retention in ALL)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no retention named 'hold': choose one of drop, keep, "):
        make("hold", RetentionSettings(), watermark=0.95)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.0004, "0.4 ms"), (0.06, "60 ms"), (1.32, "1.3 s"), (28.4, "28 s"), (4000.0, "4000 s")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
