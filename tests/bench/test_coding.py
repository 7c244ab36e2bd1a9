"""The synthetic coding agents: reproducible, inside their context, with the spreads they claim."""

import statistics

import pytest

from astraea_local.bench.coding import Agent, estimate_tokens, workload
from astraea_local.engine.binding import Model
from astraea_local.model_source import resolve

_MANY = [agent for seed in range(20) for agent in workload(seed)]


def test_the_seed_decides_everything() -> None:
    assert workload(3) == workload(3)
    assert workload(3) != workload(4)


def test_more_agents_leave_the_first_ones_alone() -> None:
    assert workload(3, agents=20)[:5] == workload(3, agents=5)


def test_agents_share_the_system_prompt_and_nothing_else() -> None:
    agents = workload(1)
    assert len(agents) == 12
    assert len({agent.system for agent in agents}) == 1
    assert len({agent.id for agent in agents}) == 12
    assert len({agent.task[:40] for agent in agents}) == 12
    assert len({agent.system for agent in workload(1, agents=40, systems=3)}) == 3


@pytest.mark.parametrize("limit", [400, 1000, 2000, 8000, 26700])
def test_contexts_fit_the_limit(limit: int) -> None:
    agents = [agent for seed in range(5) for agent in workload(seed, context_limit=limit)]
    largest = max(agent.context_tokens for agent in agents)
    assert limit / 2 < largest <= limit


def test_contexts_fit_by_the_count_of_a_real_tokenizer() -> None:
    with Model(resolve("demo"), vocab_only=True) as model:

        def count(text: str) -> int:
            return len(model.vocab.tokenize(text, add_special=False, parse_special=False))

        for agent in _MANY[:48]:
            texts = [agent.system, agent.task, *(turn.tool_result_text for turn in agent.turns)]
            tokens = sum(count(text) for text in texts)
            assert tokens <= 1.02 * sum(estimate_tokens(text) for text in texts)
            assert tokens + sum(turn.output_tokens for turn in agent.turns) < 2000


def test_arrivals_start_at_once_and_keep_the_rate() -> None:
    for seed in range(5):
        arrivals = [agent.arrival_s for agent in workload(seed, agents=400, rate=0.5)]
        assert arrivals[0] == 0
        assert arrivals == sorted(arrivals)
        assert arrivals[-1] / 399 == pytest.approx(2.0, rel=0.2)


def test_turns_and_lengths_have_the_published_spreads() -> None:
    assert all(4 <= len(agent.turns) <= 8 for agent in _MANY)
    assert all(150 * 0.9 <= estimate_tokens(agent.system) <= 150 for agent in _MANY)
    assert all(90 <= estimate_tokens(agent.task) <= 400 for agent in _MANY)
    outputs = [turn.output_tokens for agent in _MANY for turn in agent.turns]
    assert 8 <= min(outputs) <= max(outputs) <= 200
    assert statistics.median(outputs) == pytest.approx(40, rel=0.15)
    assert statistics.fmean(outputs) > 1.3 * statistics.median(outputs)
    results = [estimate_tokens(turn.tool_result_text) for agent in _MANY for turn in agent.turns[:-1]]
    assert statistics.median(results) == pytest.approx(60, rel=0.15)
    assert max(results) > 5 * statistics.median(results)


def test_tool_waits_are_mostly_short_with_a_heavy_tail() -> None:
    waits = sorted(turn.tool_seconds for agent in _MANY for turn in agent.turns[:-1])
    assert 0.1 < statistics.median(waits) < 1.0
    assert waits[-1] <= 20
    longest = waits[-len(waits) // 20 :]
    assert sum(longest) > 0.35 * sum(waits)


def test_the_last_turn_has_no_tool() -> None:
    assert all(agent.turns[-1].tool_result_text == "" for agent in _MANY)
    assert all(agent.turns[-1].tool_seconds == 0 for agent in _MANY)
    assert all(turn.tool_result_text for agent in _MANY for turn in agent.turns[:-1])


def test_a_longer_context_makes_longer_texts_then_more_turns() -> None:
    def mean_turns(agents: tuple[Agent, ...]) -> float:
        return statistics.fmean(len(agent.turns) for agent in agents)

    assert mean_turns(workload(1, agents=50, context_limit=4000)) < 8
    assert mean_turns(workload(1, agents=50, context_limit=26700)) > 25


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 400"):
        workload(1, context_limit=100)
    with pytest.raises(ValueError, match="at least 1"):
        workload(1, agents=0)
    with pytest.raises(ValueError, match="rate above 0"):
        workload(1, rate=0)
