"""InferCept's six kinds of jobs as agents with real texts, for a real server.

Lengths, calls and waits are those of `infercept.py`, with contexts cut to the limit and waits shortened by
one factor, so that a run on a small machine takes minutes: a human who answers after 28.6 s in the table does
so after a quarter of that with a factor of 0.25.
"""

import random

from astraea_local.bench import infercept as table
from astraea_local.bench.coding import Agent, Turn, pseudo_code

# Chat templates wrap every message; 8 covers ChatML (5) and Llama 3 (6).
_MESSAGE_OVERHEAD = 8
_LEAST_TOKENS = 4


def workload(
    seed: int, *, agents: int = 12, rate: float = 0.25, context_limit: int = 1200, time_scale: float = 0.25
) -> tuple[Agent, ...]:
    """The agents in order of arrival, a Poisson process of `rate` per second that starts with one at 0 s.

    Categories take turns, so that each has its share however few the agents are. Raises `ValueError` for
    arguments that no workload can meet.
    """
    if context_limit < 400 or agents < 1 or rate <= 0 or time_scale < 0:
        raise ValueError(
            "context_limit must be at least 400, agents at least 1, rate and time_scale positive"
        )
    arrivals = random.Random(f"{seed} arrivals")  # noqa: S311 - reproducible, and nothing secret
    made, at = [], 0.0
    for index in range(agents):
        made.append(_agent(seed, index, at, context_limit, time_scale))
        at += arrivals.expovariate(rate)
    return tuple(made)


def _agent(seed: int, index: int, at: float, limit: int, time_scale: float) -> Agent:
    rng = random.Random(f"{seed} agent {index}")  # noqa: S311
    category = table.CATEGORIES[index % len(table.CATEGORIES)]
    request = table.draw(rng, category, limit)
    count = len(request.output_tokens)
    # What wraps the messages has to fit as well: jobs of many small calls make fewer of them.
    overhead = 2 * _MESSAGE_OVERHEAD
    shared = category.shared_tokens(limit)
    system = pseudo_code(random.Random(f"{seed} {category.name}"), shared)  # noqa: S311
    task = pseudo_code(
        rng, max(_LEAST_TOKENS, request.new_tokens[0] - shared - overhead), f"{category.name}-{index}"
    )
    turns: list[Turn] = []
    used = request.new_tokens[0]
    for number in range(count):
        last = number == count - 1
        output = max(_LEAST_TOKENS, request.output_tokens[number])
        result = 0 if last else max(_LEAST_TOKENS, request.new_tokens[number + 1])
        used += output + result + 2 * _MESSAGE_OVERHEAD
        ends = last or used + _LEAST_TOKENS + 2 * _MESSAGE_OVERHEAD > limit
        wait = 0.0 if ends else time_scale * request.waits_s[number]
        turns.append(Turn("" if ends else pseudo_code(rng, result), output, wait))
        if ends:
            break
    return Agent(f"{category.name}-{index}", at, system, task, tuple(turns))
