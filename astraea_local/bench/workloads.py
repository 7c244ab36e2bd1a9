"""Workloads of the simulator: jobs as lengths and waits, the same for the same seed on every machine.

* `infercept`: InferCept's six categories, drawn equally (`infercept.py` has the table and how it is read).
* `coding`: coding agents with the statistics of the MLCommons `endpoints` agentic example (mini-swe-agent on
  SWE-bench, 20 conversations, 1,007 turns): 50 turns, 1.8k tokens at first and 22k in the end, outputs with
  median 80 and mean 167, tool results with 122 and 247. Tools are shell commands, by verb: most take less
  than 0.1 s, 3 in 100 hold three quarters of all tool time. TraceLab's sessions, of whose calls 4 % take
  more than a minute, are another population and not what is drawn here.
* `mixed`: every other job of one and of the other.
* `trace`: recorded conversations from a file (`trace.py` has the format).

A job depends on the seed and on its place only: more jobs change none of the first, and another rate changes
nothing but the arrivals, which it scales. No context ever exceeds the context limit. `coding` and `trace`
scale all contexts by one factor so that the longest just fits: jobs first take fewer turns, and where few are
left, their texts become shorter. The turns that stay are spread over the whole job: in the recording, long
calls come late.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from astraea_local.bench import infercept as table
from astraea_local.bench.trace import WorkloadError as WorkloadError
from astraea_local.bench.trace import common_tokens, read

_LEAST_CONTEXT = 400
_INFERCEPT_CONTEXT = 2048
_CODING_CONTEXT = 26_800

# Recorded coding agents. ln(mean / median) = sigma^2 / 2 of a log-normal.
_TURNS = (51.0, 6.0)
_FIRST = (1660, math.sqrt(2 * math.log(1770 / 1660)))
_OUTPUT = (80, math.sqrt(2 * math.log(167 / 80)))
_RESULT = (122, math.sqrt(2 * math.log(247 / 122)))
_MOST_OUTPUT = 3200
_MOST_RESULT = 2800
_LEAST_FIRST = 500
# Their system prompt and tools; the instructions follow the task, so no other agent shares them.
_CODING_SHARED = 100
_LEAST_TOKENS = 4
# Verb -> recorded calls, median seconds and sigma of a log-normal, share of long calls among its own. Where
# the recorded waits are no log-normal, the median is set above theirs for the sake of the mean.
_VERBS: dict[str, tuple[float, float, float, float]] = {
    "sed": (217, 0.054, 0.11, 0.0),
    "python": (196, 0.21, 0.77, 0.010),
    "grep": (178, 0.056, 0.25, 0.0),
    "cat": (111, 0.100, 0.82, 0.0),
    "git": (70, 0.075, 0.45, 0.0),
    "pytest": (69, 0.27, 1.06, 0.029),
    "pip": (59, 1.44, 0.86, 0.034),
    "find": (31, 0.120, 0.70, 0.0),
    "ls": (18, 0.051, 0.18, 0.0),
    "rm": (17, 0.150, 0.90, 0.0),
}
_VERB_NAMES = tuple(_VERBS)
_VERB_SUMS = tuple(accumulate(weight for weight, *_ in _VERBS.values()))
# Long calls: six of the recorded 987, evenly on a logarithmic scale. None took longer than 120 s.
_LONG_S = (25.0, 120.0)

# With a context of 1 / 2.2 of the full one the first prompt begins to shrink, with 1 / 6.7 all other texts.
_FIRST_KEPT = 2.2
_TEXT_KEPT = 6.7
_LEAST_CALLS = 4

# Pareto with a finite mean and an infinite variance; nobody waits longer than an hour for a tool.
_TAIL_SHAPE = 1.5
_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call of a job, and the tool wait after it."""

    new_tokens: int
    """Prompt tokens that it adds to the job's context; the first call's are the whole first prompt."""
    output_tokens: int
    tool: str
    """"name" or "name:verb", "" on the last call."""
    tool_s: float
    """Seconds, 0 on the last call."""


@dataclass(frozen=True, slots=True)
class SimJob:
    """One job, from its arrival to the end of its last call."""

    id: str
    kind: str
    """Family of jobs that begin alike, with the same system prompt and tools."""
    arrival_s: float
    """Seconds after the start."""
    shared_tokens: int
    """Leading tokens of the first prompt that all jobs of the kind have in common."""
    calls: tuple[Call, ...]

    @property
    def context_tokens(self) -> int:
        """Tokens of its context in the end."""
        return sum(map(_tokens, self.calls))


class Workload(Protocol):
    """Makes jobs in order of arrival, a Poisson process of `rate` per second that starts with one at 0 s.

    Raises `WorkloadError` for arguments that no workload can meet.
    """

    def __call__(
        self, seed: int, *, jobs: int, rate: float, context_limit: int = ...
    ) -> tuple[SimJob, ...]: ...


def infercept(
    seed: int, *, jobs: int, rate: float, context_limit: int = _INFERCEPT_CONTEXT
) -> tuple[SimJob, ...]:
    """InferCept's six categories, drawn equally."""
    _check(jobs, rate, context_limit)
    return tuple(_infercept_job(seed, *placed, context_limit) for placed in _arrivals(seed, jobs, rate))


def coding(seed: int, *, jobs: int, rate: float, context_limit: int = _CODING_CONTEXT) -> tuple[SimJob, ...]:
    """Coding agents that work in a shell."""
    _check(jobs, rate, context_limit)
    return tuple(_coding_job(seed, *placed, context_limit) for placed in _arrivals(seed, jobs, rate))


def mixed(seed: int, *, jobs: int, rate: float, context_limit: int = _CODING_CONTEXT) -> tuple[SimJob, ...]:
    """InferCept's categories and coding agents in turn."""
    _check(jobs, rate, context_limit)
    return tuple(
        (_coding_job if index % 2 else _infercept_job)(seed, index, at, context_limit)
        for index, at in _arrivals(seed, jobs, rate)
    )


def trace(
    path: Path, seed: int, *, jobs: int, rate: float, context_limit: int = _CODING_CONTEXT
) -> tuple[SimJob, ...]:
    """Recorded conversations in an order that the seed decides, each once before any comes again.

    Raises `WorkloadError` with the line of a fault in the file.
    """
    _check(jobs, rate, context_limit)
    recorded = read(path)
    plain = [
        tuple(Call(e.new_tokens, e.output_tokens, e.tool, e.tool_s) for e in conversation.exchanges)
        for conversation in recorded
    ]
    full = max(sum(map(_tokens, calls)) for calls in plain)
    shrunk = [_shrunk(calls, context_limit, full) for calls in plain]
    shared = round(common_tokens(recorded) * _first_scale(context_limit, full))
    shared = min(shared, *(calls[0].new_tokens for calls in shrunk))
    order = list(range(len(shrunk)))
    _rng(seed, "trace order").shuffle(order)
    made = []
    for index, at in _arrivals(seed, jobs, rate):
        chosen = order[index] if index < len(order) else _rng(seed, f"trace {index}").choice(order)
        made.append(SimJob(f"trace-{index}", "trace", at, shared, shrunk[chosen]))
    return tuple(made)


WORKLOADS: dict[str, Workload] = {"infercept": infercept, "coding": coding, "mixed": mixed}


def make(
    name: str, seed: int, *, jobs: int, rate: float, context_limit: int | None = None
) -> tuple[SimJob, ...]:
    """The named workload, with its own context limit unless one is given."""
    if name not in WORKLOADS:
        raise WorkloadError(f"no workload {name!r}: expected one of {', '.join(WORKLOADS)}")
    if context_limit is None:
        return WORKLOADS[name](seed, jobs=jobs, rate=rate)
    return WORKLOADS[name](seed, jobs=jobs, rate=rate, context_limit=context_limit)


def heavy_tail(jobs: Sequence[SimJob], seed: int, share: float, factor: float) -> tuple[SimJob, ...]:
    """The same jobs, `share` of their tool waits replaced by Pareto draws from `factor` times the wait on.

    The shape is 1.5: draws average three times their least value, and none is longer than an hour (or than
    the wait it replaces).
    """
    if not 0 <= share <= 1 or not 0 < factor < math.inf:
        raise WorkloadError("heavy_tail: share must be 0..1, and factor above 0")

    def wait(rng: random.Random, call: Call) -> Call:
        if rng.random() >= share:
            return call
        drawn = call.tool_s * factor * rng.paretovariate(_TAIL_SHAPE)
        return replace(call, tool_s=min(drawn, max(_LONGEST_WAIT_S, call.tool_s)))

    made = []
    for job in jobs:
        rng = _rng(seed, f"tail {job.id}")
        made.append(replace(job, calls=(*(wait(rng, call) for call in job.calls[:-1]), job.calls[-1])))
    return tuple(made)


def _rng(seed: int, part: str) -> random.Random:
    return random.Random(f"{seed} {part}")  # noqa: S311 - reproducible, and nothing secret


def _check(jobs: int, rate: float, context_limit: int) -> None:
    if jobs < 1 or not 0 < rate < math.inf:
        raise WorkloadError(f"jobs is {jobs} and rate {rate}: expected at least 1 job, and a rate above 0")
    if context_limit < _LEAST_CONTEXT:
        raise WorkloadError(f"context_limit is {context_limit}: at least {_LEAST_CONTEXT} tokens are needed")


def _arrivals(seed: int, jobs: int, rate: float) -> Iterable[tuple[int, float]]:
    """Places and seconds. Gaps are drawn at rate 1, so that the rate scales the arrivals exactly."""
    rng = _rng(seed, "arrivals")
    at = 0.0
    for index in range(jobs):
        yield index, at / rate
        at += rng.expovariate(1.0)


def _infercept_job(seed: int, index: int, at: float, limit: int) -> SimJob:
    rng = _rng(seed, f"infercept {index}")
    category = rng.choice(table.CATEGORIES)
    request = table.draw(rng, category, limit)
    tools = [*((category.tool, wait) for wait in request.waits_s), ("", 0.0)]
    calls = tuple(
        Call(new, output, *tool)
        for new, output, tool in zip(request.new_tokens, request.output_tokens, tools, strict=True)
    )
    return SimJob(f"{category.name}-{index}", category.name, at, category.shared_tokens(limit), calls)


def _coding_job(seed: int, index: int, at: float, limit: int) -> SimJob:
    rng = _rng(seed, f"coding {index}")
    first = max(_LEAST_FIRST, _length(rng, _FIRST, _CODING_CONTEXT))
    calls = []
    for turn in range(max(_LEAST_CALLS, round(rng.gauss(*_TURNS)))):
        new = first if turn == 0 else _length(rng, _RESULT, _MOST_RESULT)
        output = _length(rng, _OUTPUT, _MOST_OUTPUT)
        verb = rng.choices(_VERB_NAMES, cum_weights=_VERB_SUMS)[0]
        calls.append(Call(new, output, f"bash:{verb}", _tool_seconds(rng, verb)))
    shared = round(_CODING_SHARED * _first_scale(limit, _CODING_CONTEXT))
    return SimJob(f"coding-{index}", "coding", at, shared, _shrunk(calls, limit, _CODING_CONTEXT))


def _length(rng: random.Random, spread: tuple[float, float], most: int) -> int:
    median, sigma = spread
    return round(min(max(rng.lognormvariate(math.log(median), sigma), _LEAST_TOKENS), most))


def _tool_seconds(rng: random.Random, verb: str) -> float:
    _, median, sigma, long_share = _VERBS[verb]
    if rng.random() < long_share:
        return math.exp(rng.uniform(*map(math.log, _LONG_S)))
    return rng.lognormvariate(math.log(median), sigma)


def _first_scale(limit: int, full: int) -> float:
    return min(1.0, _FIRST_KEPT * limit / full)


def _shrunk(calls: Sequence[Call], limit: int, full: int) -> tuple[Call, ...]:
    """Fewer calls, and shorter ones if need be, so that `full` tokens of context become `limit`.

    The last call has no tool.
    """
    scale = min(1.0, limit / full)
    context = sum(map(_tokens, calls))
    if scale == 1.0 and context <= limit:
        return _ended(calls)
    scaled = [_scaled(call, min(1.0, _TEXT_KEPT * scale)) for call in calls]
    first = max(1, min(round(calls[0].new_tokens * _first_scale(limit, full)), limit // 3))
    scaled[0] = replace(scaled[0], new_tokens=first)
    each = (sum(map(_tokens, scaled)) - first) / len(calls)
    least = min(_LEAST_CALLS, len(calls))
    count = min(max(round((scale * context - first) / each), least), len(calls))
    kept = _spread(scaled, count)
    while sum(map(_tokens, kept)) > limit and len(kept) > least:
        kept = _spread(scaled, len(kept) - 1)
    total = sum(map(_tokens, kept))
    if total > limit:
        # One token of each text stays: without them, the rest has to fit into what is left.
        fixed = first + 2 * len(kept) - 1
        kept = [_scaled(call, (limit - fixed) / (total - fixed)) for call in kept]
        kept[0] = replace(kept[0], new_tokens=first)
    return _ended(kept)


def _spread(calls: Sequence[Call], count: int) -> list[Call]:
    """So many of the calls, evenly over all of them, the first among them."""
    return [calls[place * len(calls) // count] for place in range(count)]


def _tokens(call: Call) -> int:
    return call.new_tokens + call.output_tokens


def _ended(calls: Sequence[Call]) -> tuple[Call, ...]:
    return (*calls[:-1], replace(calls[-1], tool="", tool_s=0.0))


def _scaled(call: Call, factor: float) -> Call:
    """Its texts shorter by the factor; of each, the first token stays."""
    return replace(
        call,
        new_tokens=1 + int((call.new_tokens - 1) * factor),
        output_tokens=1 + int((call.output_tokens - 1) * factor),
    )
