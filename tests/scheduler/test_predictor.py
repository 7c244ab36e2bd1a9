"""What a segment is expected to cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.job import Job, Segment, SegmentState
from astraea_local.scheduler.predictor import Speeds, predict_output, remaining_output, service_s

_SPEEDS = Speeds(prefill_tokens_s=100.0, step_base_s=0.01, step_segment_s=0.02, step_token_s=0.0001)


def _job(*outputs: int) -> Job:
    return Job("a", 0.0, segments=len(outputs), output_tokens=sum(outputs))


def _segment(*, prompt: int = 100, cached: int = 0, output: int = 0, predicted: float = 10.0) -> Segment:
    return Segment(
        id=1,
        job="a",
        prompt_tokens=prompt,
        max_output=1000,
        arrived=0.0,
        predicted_output=predicted,
        cached=cached,
        output=output,
    )


def test_nothing_known_gives_the_prior() -> None:
    assert predict_output(_job(), 1000, prior=160) == 160


def test_a_job_is_expected_to_go_on_as_it_did() -> None:
    assert predict_output(_job(20, 20), 1000, prior=160) == 90
    assert predict_output(_job(*[20] * 98), 1000, prior=160) == pytest.approx(22.8)


@given(st.lists(st.integers(0, 5000), max_size=20), st.integers(1, 4000), st.integers(1, 1000))
def test_a_prediction_stays_between_one_and_the_limit(outputs: list[int], limit: int, prior: int) -> None:
    predicted = predict_output(_job(*outputs), limit, prior)
    assert 1 <= predicted <= limit
    if outputs and limit == 4000:
        assert min(*outputs, prior) <= predicted <= max(*outputs, prior)


@given(st.lists(st.integers(0, 5000), max_size=20), st.integers(0, 5000), st.integers(0, 5000))
def test_longer_answers_never_lower_the_prediction(outputs: list[int], a: int, b: int) -> None:
    shorter, longer = sorted((a, b))
    first = predict_output(_job(*outputs, shorter), 4000, 160)
    assert first <= predict_output(_job(*outputs, longer), 4000, 160)


def test_what_came_is_taken_off_until_the_prediction_is_outlived() -> None:
    assert remaining_output(_segment(output=4)) == 6
    assert remaining_output(_segment(output=10)) == 2.5
    assert remaining_output(_segment(output=400)) == 100


@given(st.integers(1, 300), st.floats(1, 300), st.integers(0, 300))
def test_remaining_output_stays_between_one_and_what_the_limit_leaves(
    limit: int, predicted: float, output: int
) -> None:
    segment = _segment(output=min(output, limit), predicted=min(predicted, limit))
    segment.max_output = limit
    assert 1 <= remaining_output(segment) <= max(1, limit - segment.output)


def test_service_is_prefill_of_the_uncached_and_decode() -> None:
    decode = 10 * (0.01 + 0.02 + 100 * 0.0001)
    assert service_s(_segment(), _SPEEDS) == pytest.approx(1.0 + decode)
    assert service_s(_segment(cached=60), _SPEEDS) == pytest.approx(0.4 + decode)


def test_the_last_token_is_never_cached() -> None:
    assert service_s(_segment(cached=100), _SPEEDS) == service_s(_segment(cached=99), _SPEEDS)


def test_parked_kv_costs_its_restore_until_it_is_there() -> None:
    segment = _segment(cached=99)
    without = service_s(segment, _SPEEDS)
    segment.restore_s = 5.0
    assert service_s(segment, _SPEEDS) == pytest.approx(without + 5.0)
    segment.state, segment.computed = SegmentState.RUNNING, 99
    assert service_s(segment, _SPEEDS) == pytest.approx(without)


def test_a_running_segment_counts_what_is_computed_not_what_was_promised() -> None:
    segment = _segment(cached=90)
    segment.state, segment.computed = SegmentState.RUNNING, 30
    assert segment.uncached == 70


@given(st.integers(1, 2000), st.integers(0, 2000), st.integers(0, 2000))
def test_more_reuse_never_costs_more(prompt: int, a: int, b: int) -> None:
    less, more = sorted((a, b))
    assert service_s(_segment(prompt=prompt, cached=more), _SPEEDS) <= service_s(
        _segment(prompt=prompt, cached=less), _SPEEDS
    )


def test_a_step_costs_its_weights_its_segments_and_their_contexts() -> None:
    assert _SPEEDS.decode_step(3, 1000) == pytest.approx(0.01 + 0.06 + 0.1)
