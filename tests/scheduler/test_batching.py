"""How large a step may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.batching import even_chunk, prefill_budget
from astraea_local.scheduler.speeds import Speeds

_SPEEDS = st.builds(
    Speeds,
    prefill_base_s=st.floats(0, 0.1),
    prefill_token_s=st.floats(1e-5, 0.01),
    prefill_pair_s=st.just(0.0) | st.floats(1e-9, 1e-6),
    step_base_s=st.floats(1e-4, 0.1),
    step_segment_s=st.floats(1e-5, 0.05),
    step_token_s=st.floats(0, 1e-5),
)


def test_while_others_decode_a_prefill_takes_what_they_leave_of_the_step() -> None:
    speeds = Speeds(
        prefill_base_s=0.01,
        prefill_token_s=0.001,
        prefill_pair_s=1e-6,
        step_base_s=0.02,
        step_segment_s=0.005,
        step_token_s=1e-5,
    )
    assert prefill_budget(speeds, 0.2515, decoding=0, tokens=0, past=0) == 241
    # Two that decode with 4,000 tokens of context take 0.02 + 0.01 + 0.04 s.
    assert prefill_budget(speeds, 0.2515, decoding=2, tokens=4000, past=0) == 171
    # Behind 1,000 tokens each costs twice as much.
    assert prefill_budget(speeds, 0.2515, decoding=2, tokens=4000, past=1000) == 85


def test_a_slow_machine_goes_on_in_small_steps() -> None:
    assert prefill_budget(Speeds(), 1e-6, decoding=8, tokens=8000, past=9000) == 16


@given(_SPEEDS, st.floats(1e-3, 2), st.integers(0, 16), st.integers(0, 100_000), st.integers(0, 100_000))
def test_the_step_stays_within_its_limit_and_one_token_more_would_not(
    speeds: Speeds, limit_s: float, decoding: int, tokens: int, past: int
) -> None:
    budget = prefill_budget(speeds, limit_s, decoding=decoding, tokens=tokens, past=past)

    def step_s(prefilled: int) -> float:
        others = speeds.decode_step(decoding, tokens) if decoding else 0.0
        return others + speeds.prefill_base_s + prefilled / speeds.prefill_rate(past)

    assert budget >= 16
    assert budget == 16 or step_s(budget) <= limit_s * (1 + 1e-9)
    assert step_s(budget + 1) >= limit_s * (1 - 1e-9)


@given(st.integers(1, 5000), st.integers(1, 600))
def test_chunks_are_as_few_as_full_ones_and_nearly_equal(pending: int, most: int) -> None:
    chunks, left = [], pending
    while left:
        chunk = even_chunk(left, most)
        chunks.append(chunk)
        left -= chunk
    assert len(chunks) == -(-pending // most)
    assert max(chunks) <= most
    assert max(chunks) - min(chunks) <= 1


@pytest.mark.parametrize(
    ("pending", "most", "chunk"), [(1, 512, 1), (512, 512, 512), (513, 512, 257), (1100, 512, 367)]
)
def test_a_rest_is_spread_over_all_chunks(pending: int, most: int, chunk: int) -> None:
    assert even_chunk(pending, most) == chunk
