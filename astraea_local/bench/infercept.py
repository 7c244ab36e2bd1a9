"""The six kinds of augmented calls that InferCept measured, as lengths and waits of one job.

Source: InferCept (ICML 2024, arXiv 2402.01869), Table 1: duration of a call, calls per request, context
tokens, two figures each. The second is taken as a **standard deviation** throughout, although the copy at
hand labels it a variance: as a variance, the calculator's 6e-5 would spread 86 times its mean, while
contexts (1422, 738) and waits of a human (28.6, 15.6) would hardly vary at all.

* Durations: gamma.
* Calls: gamma, rounded, at least one; the spread is corrected for the rounding. A job with c calls has
  c + 1 segments.
* Context tokens, read as the context **at the end**: log-normal, cut to what the context limit allows (a
  job that would grow longer ends there). With InferCept's own 2,048 tokens nearly every job of ALFWorld,
  whose published mean is 2,185, ends exactly at the limit.
* Calls and contexts are drawn independently: the table says nothing about their relation.

The table has no output lengths either. A quarter of the context is the first prompt; of the rest 85 % is
generated and 15 % returned by the tools. The split is chosen by the recompute that InferCept reports when
every return discards the context, 37-40 % of forward time, at its 0.0463 ms per forwarded token and 10 ms
per decode step. With 30 jobs in a step the share of a job is 0.38 on average. That of the summed time is
higher (0.54), since ALFWorld recomputes 2,000 tokens 28 times; it is 0.39 with 15 jobs in a step, and would
be so with 30 only if the prompts were nearly empty.
"""

import math
import random
from dataclasses import dataclass
from itertools import accumulate, pairwise

FIRST_SHARE = 0.25
"""Of the final context: the first prompt."""
GENERATED_SHARE = 0.85
"""Of what follows the first prompt: generated. Tools return the remainder."""
# Few-shot examples and tool descriptions stand before the question: of an average first prompt this much.
_SHARED_SHARE = 0.25
_LEAST_QUESTION = 8
# Segments of one job differ by this sigma of a log-normal; an assumption, no source gives it.
_SEGMENT_SIGMA = 0.7
# Rounding to whole calls adds the variance of a uniform distribution.
_ROUNDING = 1 / 12


@dataclass(frozen=True, slots=True)
class Category:
    """One row of the table, each figure as (mean, standard deviation)."""

    name: str
    tool: str
    duration_s: tuple[float, float]
    calls: tuple[float, float]
    context_tokens: tuple[float, float]

    def shared_tokens(self, context_limit: int) -> int:
        """Leading tokens that all jobs of the category have in common."""
        return round(_SHARED_SHARE * FIRST_SHARE * min(self.context_tokens[0], context_limit))


CATEGORIES = (
    Category("math", "calculator", (9e-5, 6e-5), (3.75, 1.3), (1422, 738)),
    Category("qa", "wikipedia", (0.69, 0.17), (2.52, 1.73), (1846, 428)),
    Category("ve", "alfworld", (0.09, 0.014), (28.18, 15.2), (2185, 115)),
    Category("chatbot", "human", (28.6, 15.6), (4.45, 1.96), (753, 703)),
    Category("image", "stable_diffusion", (20.03, 7.8), (6.91, 3.93), (1247, 792)),
    Category("tts", "bark", (17.24, 7.6), (6.91, 3.93), (1251, 792)),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the table: `new_tokens` and `output_tokens` per segment, `waits_s` between segments."""

    new_tokens: list[int]
    output_tokens: list[int]
    waits_s: list[float]


def draw(rng: random.Random, category: Category, context_limit: int) -> Request:
    """One request of the category, whose final context has at most `context_limit` tokens (at least 400)."""
    least = category.shared_tokens(context_limit) + _LEAST_QUESTION
    context = round(min(max(_log_normal(rng, *category.context_tokens), 2 * least), context_limit))
    mean, sd = category.calls
    calls = max(1, round(_gamma(rng, mean, math.sqrt(sd**2 - _ROUNDING))))
    first = max(round(FIRST_SHARE * context), least)
    returned = max(1, round((1 - GENERATED_SHARE) * (context - first)))
    # Each call returns something, so a short context has room for few calls only.
    calls = min(calls, returned)
    return Request(
        new_tokens=[first, *_split(rng, returned, calls)],
        output_tokens=_split(rng, context - first - returned, calls + 1),
        waits_s=[_gamma(rng, *category.duration_s) for _ in range(calls)],
    )


def _gamma(rng: random.Random, mean: float, sd: float) -> float:
    return rng.gammavariate((mean / sd) ** 2, sd**2 / mean)


def _log_normal(rng: random.Random, mean: float, sd: float) -> float:
    variance = math.log1p((sd / mean) ** 2)
    return rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))


def _split(rng: random.Random, total: int, parts: int) -> list[int]:
    """`parts` numbers of at least 1 that sum to `total`, their spread about the mean log-normal."""
    sums = list(accumulate(rng.lognormvariate(0, _SEGMENT_SIGMA) for _ in range(parts)))
    spare = total - parts
    # Cut at rounded partial sums: every part comes out whole, and the total exact.
    cuts = [0, *(int(spare * s / sums[-1]) for s in sums[:-1]), spare]
    return [1 + after - before for before, after in pairwise(cuts)]
