"""Synthetic coding agents: the same seed gives the same arrivals, texts, lengths and tool waits.

The spreads are those of recorded coding agents: output lengths are log-normal with a mean of 2.1 times
the median, tool results likewise with 2.0 times, and 3 in 100 tool calls are long ones. At a context of
2,000 tokens the medians are half of the recorded ones (40 and 60 tokens); they grow with the context up to
the recorded ones (80 and 120), after that the agents take more turns instead.
"""

import math
import random
import re
from dataclasses import dataclass

_BASE_CONTEXT = 2000
_LEAST_CONTEXT = 400
# A reply comes back as text, which may be a few tokens longer than what was generated.
_FILL = 0.95
# Chat templates wrap every message; 8 covers ChatML (5) and Llama 3 (6).
_MESSAGE_OVERHEAD = 8
_LEAST_TOKENS = 8

# ln(mean / median) = sigma^2 / 2, with means and medians of recorded agents.
_OUTPUT_SIGMA = math.sqrt(2 * math.log(167 / 80))
_RESULT_SIGMA = math.sqrt(2 * math.log(247 / 122))
_TOOL_SIGMA = 1.0
_LONG_CALLS = 0.03
_LONG_CALL_S = 4.0
_TOOL_CAP_S = 20.0

_VERBS: list[str] = re.findall(
    r"\w+",
    """
add apply build cache check clear close collect compare copy count create drop emit fetch filter find flush
format handle insert join list load lock merge move open pack parse pick print push read reduce reload remove
render replace reset resolve return run save scan select send set skip sort split start stop store sum test
trace trim update use wait walk watch wrap write
""",
)
_NOUNS: list[str] = re.findall(
    r"\w+",
    """
account address agent amount argument array batch block body branch buffer byte cell chain chunk class client
code column config count cursor data date default depth device domain edge entry error event factor field file
filter flag folder form frame graph group handle hash header host index input item job key label layer length
level limit line link list lock loop map mark message method mode model module name node number object option
order output owner page pair parent path pattern pipe place point pool port process query queue range rate
record region report request result role root route row rule sample scale schema scope score section segment
server session shape sheet signal size slot source stack stage state step store stream string table tag target
task test text thread ticket time token tool total tree type unit update user value vector version view weight
window word worker zone
""",
)
_SIGNS = ("ok", "failed", "skipped", "slow", "new", "empty", "wrong", "late")


@dataclass(frozen=True, slots=True)
class Turn:
    """One LLM call and the tool call after it; the last turn of an agent has no tool call."""

    tool_result_text: str
    """What the tool says, empty on the last turn."""
    output_tokens: int
    tool_seconds: float
    """Seconds that the tool takes, 0 on the last turn."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One job: a system prompt, a task, then turns until it is done."""

    id: str
    arrival_s: float
    """Seconds after the start of the replay."""
    system: str
    task: str
    turns: tuple[Turn, ...]

    @property
    def context_tokens(self) -> int:
        """Tokens that its context has in the end, estimated on the high side."""
        messages = 2 + 2 * len(self.turns)
        texts = [self.system, self.task, *(turn.tool_result_text for turn in self.turns)]
        return (
            messages * _MESSAGE_OVERHEAD
            + sum(estimate_tokens(text) for text in texts)
            + sum(turn.output_tokens for turn in self.turns)
        )


def workload(
    seed: int, *, agents: int = 12, rate: float = 0.25, context_limit: int = 2000, systems: int = 1
) -> tuple[Agent, ...]:
    """The agents in order of arrival, a Poisson process of `rate` per second that starts with one at 0 s.

    No agent's context exceeds `context_limit` tokens; `systems` is the number of different system prompts
    among them. An agent depends on the seed and its place only, so that more agents change none of the
    first. Raises `ValueError` for arguments that no workload can meet.
    """
    if context_limit < _LEAST_CONTEXT:
        raise ValueError(f"context_limit is {context_limit}: at least {_LEAST_CONTEXT} tokens are needed")
    if agents < 1 or systems < 1 or rate <= 0:
        raise ValueError("agents and systems must be at least 1, and rate above 0")
    arrivals = _rng(seed, "arrivals")
    size = min(2.0, context_limit / _BASE_CONTEXT)
    prompts = [pseudo_code(_rng(seed, f"system {i}"), round(150 * size)) for i in range(systems)]
    made = []
    at = 0.0
    for index in range(agents):
        made.append(_agent(_rng(seed, f"agent {index}"), index, at, prompts, context_limit))
        at += arrivals.expovariate(rate)
    return tuple(made)


def estimate_tokens(text: str) -> int:
    """Tokens that a byte-pair tokenizer makes of code and logs: some 6 % too many for a 49k vocabulary."""
    words = re.findall(r"[A-Za-z]+|[^A-Za-z ]", text)
    return sum(math.ceil(len(word) / 5) for word in words)


def pseudo_code(rng: random.Random, tokens: int, first: str = "") -> str:
    """Lines of pseudo-code and log, of at most `tokens` estimated tokens, the words `first` before them."""
    words = [first] if first else []
    left = tokens - estimate_tokens(first)
    while True:
        for word in [*_line(rng), "\n"]:
            left -= estimate_tokens(word)
            if left < 0:
                return " ".join(words).replace(" \n ", "\n")
            words.append(word)


def _rng(seed: int, part: str) -> random.Random:
    return random.Random(f"{seed} {part}")  # noqa: S311 - reproducible, and nothing secret


def _agent(rng: random.Random, index: int, at: float, prompts: list[str], limit: int) -> Agent:
    scale = limit / _BASE_CONTEXT
    size = min(2.0, scale)
    system = rng.choice(prompts)
    name = f"agent-{index}"
    task_tokens = round(rng.uniform(100, 400) * min(6.0, scale))
    task = pseudo_code(rng, task_tokens, first=f"{name} ticket {rng.randrange(10**6)} :")
    count = round(rng.randint(4, 8) * max(1.0, scale / size))
    outputs = [_lengths(rng, 40 * size, _OUTPUT_SIGMA, 200 * size) for _ in range(count)]
    results = [_lengths(rng, 60 * size, _RESULT_SIGMA, 400 * size) for _ in range(count - 1)]
    fixed = (2 + 2 * count) * _MESSAGE_OVERHEAD + estimate_tokens(system) + estimate_tokens(task)
    lengths = _squeeze(outputs + results, round(limit * _FILL) - fixed)
    # Projects differ in how long their tools take, so the median belongs to the agent.
    median_s = 10 ** rng.uniform(-1, 0)
    turns = [
        Turn(pseudo_code(rng, lengths[count + i]), lengths[i], _tool_seconds(rng, median_s))
        for i in range(count - 1)
    ]
    turns.append(Turn("", lengths[count - 1], 0.0))
    return Agent(name, at, system, task, tuple(turns))


def _lengths(rng: random.Random, median: float, sigma: float, most: float) -> int:
    return round(min(max(rng.lognormvariate(math.log(median), sigma), _LEAST_TOKENS), most))


def _squeeze(lengths: list[int], budget: int) -> list[int]:
    """The lengths, shortened in proportion where their sum exceeds the budget."""
    total = sum(lengths)
    if total <= budget:
        return lengths
    least = _LEAST_TOKENS * len(lengths)
    factor = (budget - least) / (total - least)
    return [_LEAST_TOKENS + int((length - _LEAST_TOKENS) * factor) for length in lengths]


def _tool_seconds(rng: random.Random, median_s: float) -> float:
    if rng.random() < _LONG_CALLS:
        return math.exp(rng.uniform(math.log(_LONG_CALL_S), math.log(_TOOL_CAP_S)))
    return min(rng.lognormvariate(math.log(median_s), _TOOL_SIGMA), _TOOL_CAP_S)


def _line(rng: random.Random) -> list[str]:
    def noun() -> str:
        return rng.choice(_NOUNS)

    verb, number = rng.choice(_VERBS), str(rng.randrange(1000))
    match rng.randrange(4):
        case 0:
            return ["def", f"{verb}_{noun()}", "(", noun(), ",", noun(), ")", ":"]
        case 1:
            return [noun(), "=", noun(), ".", verb, "(", noun(), ",", number, ")"]
        case 2:
            return ["if", noun(), "is", "not", noun(), ":", verb, noun()]
        case _:
            return ["[", number, "ms", "]", verb, noun(), noun(), ":", rng.choice(_SIGNS)]
