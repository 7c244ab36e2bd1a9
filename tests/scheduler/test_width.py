"""How many segments run at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.speeds import Speeds
from astraea_local.scheduler.width import best_width

# A step costs as much for each segment as if it ran alone.
_NO_GAIN = Speeds(step_base_s=0.0, step_segment_s=0.01, step_token_s=0.0)
# A step costs the same however many are in it.
_FREE = Speeds(step_base_s=0.01, step_segment_s=0.0, step_token_s=0.0)

_COST = st.floats(1e-6, 0.1)
_SPEEDS = st.builds(
    Speeds, step_base_s=_COST, step_segment_s=_COST, step_token_s=st.just(0.0) | st.floats(1e-9, 1e-4)
)
_SLOTS = st.integers(1, 16)
_READY = st.integers(0, 40)
_CONTEXT = st.floats(0, 20_000)


@given(_SPEEDS, _SLOTS, _READY, _CONTEXT)
def test_it_is_a_number_of_slots(speeds: Speeds, slots: int, ready: int, context: float) -> None:
    assert 1 <= best_width(speeds, slots, ready, context) <= slots


@given(_SLOTS, _READY, _CONTEXT)
def test_one_at_a_time_where_batching_buys_nothing(slots: int, ready: int, context: float) -> None:
    assert best_width(_NO_GAIN, slots, ready, context) == 1


@given(_SLOTS, st.integers(2, 40), _CONTEXT)
def test_everyone_who_is_ready_where_batching_is_free(slots: int, ready: int, context: float) -> None:
    assert best_width(_FREE, slots, ready, context) >= min(slots, ready)


@given(_SPEEDS, _SLOTS, _READY, _CONTEXT)
def test_more_ready_segments_never_narrow_it(speeds: Speeds, slots: int, ready: int, context: float) -> None:
    assert best_width(speeds, slots, ready, context) <= best_width(speeds, slots, ready + 1, context)


@given(_SPEEDS, _SLOTS, st.integers(2, 40), _CONTEXT)
def test_it_is_not_wider_than_needed(speeds: Speeds, slots: int, ready: int, context: float) -> None:
    assert best_width(speeds, slots, ready, context) <= max(ready, 1)


@given(_SPEEDS, _SLOTS, _READY, _CONTEXT)
def test_no_other_width_has_a_lower_mean(speeds: Speeds, slots: int, ready: int, context: float) -> None:
    """The formula of docs/scheduling.md, tried at every width."""

    def mean(width: int) -> float:
        return (max(ready, width) + 0.7 * width) * speeds.decode_step(width, width * context) / width

    least = min(mean(width) for width in range(1, slots + 1))
    assert mean(best_width(speeds, slots, ready, context)) == pytest.approx(least, rel=1e-9)


def test_long_contexts_narrow_it() -> None:
    """Attention is paid for each segment: batching does not share it."""
    speeds = Speeds(step_base_s=0.01, step_segment_s=0.001, step_token_s=1e-5)
    assert best_width(speeds, 8, 8, context=10) > best_width(speeds, 8, 8, context=8000)


@pytest.mark.parametrize(
    ("ready", "width"),
    [(1, 1), (4, 2), (40, 5)],
)
def test_a_slow_cpu_widens_only_for_a_crowd(ready: int, width: int) -> None:
    """SmolLM2 on two cores: 1,000-token contexts, 77 / 82 / 93 tokens/s at 1 / 2 / 4."""
    speeds = Speeds(step_base_s=0.0035, step_segment_s=0.0065, step_token_s=3e-6)
    assert best_width(speeds, 8, ready, 1000) == width
