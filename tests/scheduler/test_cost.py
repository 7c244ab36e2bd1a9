"""What segments and jobs cost, in seconds."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from astraea_local.scheduler.cost import Conditions, prefill_s, price_s, rest_s, service_s, work_s
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Rest, Segment, SegmentState
from astraea_local.scheduler.speeds import Speeds

_SPEEDS = Speeds(prefill_token_s=0.01, step_base_s=0.01, step_segment_s=0.02, step_token_s=0.0001)
_AT = Conditions(_SPEEDS)
_NEVER = Distribution.of([1e9])
_AT_ONCE = Distribution.of([1e-9])
_LAST = Rest(0.0, 0.0, 0.0, _AT_ONCE, 0.0)

_RESTS = st.builds(
    Rest,
    segments=st.floats(0, 100),
    output=st.floats(1, 1000),
    growth=st.floats(1, 1000),
    wait=st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=5).map(lambda p: Distribution.of(sorted(p))),
    expected=st.just(0.0),
)
_CONDITIONS = st.builds(Conditions, st.just(_SPEEDS), st.integers(1, 16), st.floats(0, 1e4))


def _segment(
    *, prompt: int = 100, cached: int = 0, output: int = 0, expected: float = 10.0, rest: Rest = _LAST
) -> Segment:
    return Segment(
        id=1,
        job="a",
        prompt_tokens=prompt,
        max_output=1000,
        arrived=0.0,
        expected_output=Distribution.of([expected]),
        rest=rest,
        cached=cached,
        output=output,
    )


def test_a_step_costs_its_weights_its_segments_and_their_contexts() -> None:
    assert _SPEEDS.decode_step(3, 1000) == pytest.approx(0.01 + 0.06 + 0.1)


def test_a_prompt_token_costs_more_the_more_are_before_it() -> None:
    speeds = Speeds(prefill_base_s=0.5, prefill_token_s=0.01, prefill_pair_s=1e-5)
    assert speeds.prefill(100, 0) == pytest.approx(0.5 + 1.0 + 100 * 50 * 1e-5)
    assert speeds.prefill(100, 1000) == pytest.approx(0.5 + 1.0 + 100 * 1050 * 1e-5)
    assert speeds.prefill_rate(1000) == pytest.approx(1 / 0.02)
    # In two halves it costs the same, but for the second batch.
    assert speeds.prefill(50, 0) + speeds.prefill(50, 50) == pytest.approx(0.5 + speeds.prefill(100, 0))


def test_kv_is_moved_at_the_speed_of_its_way() -> None:
    speeds = Speeds(kv_token_bytes=1000, save_bytes_s=1e6, restore_bytes_s=2e6)
    assert (speeds.save(500), speeds.restore(500)) == (0.5, 0.25)


def test_service_is_prefill_of_the_uncached_and_decode() -> None:
    decode = 10 * (0.01 + 0.02 + 100 * 0.0001)
    assert service_s(_segment(), _AT) == pytest.approx(1.0 + decode)
    assert service_s(_segment(cached=60), _AT) == pytest.approx(0.4 + decode)


def test_beside_others_service_takes_longer_and_work_is_the_own_share() -> None:
    four = Conditions(_SPEEDS, width=4)
    step = 0.01 + 4 * 0.02 + 400 * 0.0001
    assert service_s(_segment(), four) == pytest.approx(1.0 + 10 * step)
    assert work_s(_segment(), four) == pytest.approx(1.0 + 10 * step / 4)
    assert work_s(_segment(), _AT) == service_s(_segment(), _AT)


@given(_CONDITIONS, st.integers(1, 2000), st.floats(1, 1000))
def test_work_is_never_more_than_service_and_never_more_for_batching(
    at: Conditions, prompt: int, expected: float
) -> None:
    segment = _segment(prompt=prompt, expected=expected)
    assert work_s(segment, at) <= service_s(segment, at)
    assert work_s(segment, replace(at, width=at.width + 1)) <= work_s(segment, at) * (1 + 1e-12)


def test_the_last_token_is_never_cached() -> None:
    assert service_s(_segment(cached=100), _AT) == service_s(_segment(cached=99), _AT)


def test_parked_kv_costs_its_restore_until_it_is_there() -> None:
    segment = _segment(cached=99)
    without = service_s(segment, _AT)
    segment.restore_s = 5.0
    assert service_s(segment, _AT) == pytest.approx(without + 5.0)
    segment.state, segment.computed = SegmentState.RUNNING, 99
    assert service_s(segment, _AT) == pytest.approx(without)


def test_a_running_segment_counts_what_is_computed_not_what_was_promised() -> None:
    segment = _segment(cached=90)
    segment.state, segment.computed = SegmentState.RUNNING, 30
    assert segment.uncached == 70


def test_what_came_is_taken_off_until_the_prediction_is_outlived() -> None:
    assert _segment(output=4).remaining_output == 6
    assert _segment(output=10).remaining_output == 2.5
    assert _segment(output=400).remaining_output == 100


@given(st.integers(1, 300), st.floats(1, 300), st.integers(0, 300))
def test_remaining_output_stays_between_one_and_what_the_limit_leaves(
    limit: int, expected: float, output: int
) -> None:
    segment = _segment(output=min(output, limit), expected=expected)
    segment.max_output = limit
    assert 1 <= segment.remaining_output <= max(1, limit - segment.output)


@given(
    _CONDITIONS,
    _RESTS,
    st.integers(1, 2000),
    st.integers(0, 2000),
    st.integers(0, 2000),
    st.floats(1, 1000),
    st.floats(1, 1000),
)
def test_more_reuse_and_shorter_output_never_cost_more(
    at: Conditions, rest: Rest, prompt: int, a: int, b: int, c: float, d: float
) -> None:
    cheap = _segment(prompt=prompt, cached=max(a, b), expected=min(c, d), rest=rest)
    dear = _segment(prompt=prompt, cached=min(a, b), expected=max(c, d), rest=rest)
    for cost in (service_s, work_s, price_s):
        assert cost(cheap, at) <= cost(dear, at)
    assert prefill_s(cheap, at.speeds) <= prefill_s(dear, at.speeds)


def test_later_segments_cost_their_growth_and_output_behind_a_longer_context() -> None:
    speeds = replace(_SPEEDS, prefill_pair_s=1e-6)
    rest = Rest(4.0, 50.0, 150.0, _AT_ONCE, 4.0)
    # 1,000 now and 200 more by each: 1,400 on average.
    step = 0.01 + 0.02 + 1400 * 0.0001
    prefill = 150 * 0.01 + 150 * (1400 + 75) * 1e-6
    assert rest_s(rest, 1000, Conditions(speeds)) == pytest.approx(4 * (prefill + 50 * step))
    assert rest_s(_LAST, 1000, _AT) == 0.0


@given(_CONDITIONS, _RESTS)
def test_the_price_of_a_last_segment_is_its_work(at: Conditions, rest: Rest) -> None:
    segment = _segment(rest=replace(rest, segments=0.0))
    assert price_s(segment, at) == pytest.approx(work_s(segment, at))


@given(_CONDITIONS, _RESTS)
def test_with_long_waits_the_price_is_that_of_the_segment(at: Conditions, rest: Rest) -> None:
    """Unless the later ones are shorter: then it pays to go on."""
    segment = _segment(rest=replace(rest, wait=_NEVER))
    work = work_s(segment, at)
    later = rest_s(rest, segment.context, at)
    assert price_s(segment, at) == pytest.approx(min(work, (work + later) / (1 + rest.segments)))


@given(_CONDITIONS, _RESTS)
def test_with_immediate_returns_the_price_is_that_of_the_whole_job(at: Conditions, rest: Rest) -> None:
    """Unless the later ones are longer than this one: of them no more is believed than that."""
    segment = _segment(rest=replace(rest, wait=_AT_ONCE))
    work = work_s(segment, at)
    later = min(rest_s(rest, segment.context, at), rest.segments * work)
    assert price_s(segment, at) == pytest.approx(work + later, rel=1e-6)


def test_shortest_segment_first_with_long_waits_shortest_job_first_with_quick_tools() -> None:
    def two(wait: Distribution) -> tuple[float, float]:
        agent = _segment(prompt=100, rest=Rest(30.0, 50.0, 100.0, wait, 30.0))
        chat = _segment(prompt=400, rest=_LAST)
        return price_s(agent, _AT), price_s(chat, _AT)

    agent, chat = two(_NEVER)
    assert agent < chat
    agent, chat = two(_AT_ONCE)
    assert chat < agent


@given(_CONDITIONS, _RESTS, st.floats(1, 100), st.floats(1, 100))
def test_a_longer_wait_or_a_shorter_queue_never_raises_the_price(
    at: Conditions, rest: Rest, longer: float, busier: float
) -> None:
    price = price_s(_segment(rest=rest), at)
    patient = replace(rest, wait=rest.wait.scaled(longer))
    assert price_s(_segment(rest=patient), at) <= price * (1 + 1e-9)
    assert price_s(_segment(rest=rest), replace(at, backlog_s=at.backlog_s * busier)) >= price * (1 - 1e-9)


@given(_CONDITIONS, _RESTS, st.floats(0, 1000), st.floats(0, 1000))
def test_more_to_come_never_lowers_the_price(
    at: Conditions, rest: Rest, output: float, growth: float
) -> None:
    more = replace(rest, output=rest.output + output, growth=rest.growth + growth)
    assert price_s(_segment(rest=more), at) >= price_s(_segment(rest=rest), at) * (1 - 1e-9)


@given(_CONDITIONS, _RESTS)
def test_the_price_lies_between_a_part_of_the_segment_and_the_whole_job(at: Conditions, rest: Rest) -> None:
    segment = _segment(rest=rest)
    price, work = price_s(segment, at), work_s(segment, at)
    whole = work + rest_s(rest, segment.context, at)
    assume(whole < math.inf)
    assert min(work, whole / (1 + rest.segments)) * (1 - 1e-9) <= price
    assert price <= min(whole, work * (1 + rest.segments)) * (1 + 1e-9)
