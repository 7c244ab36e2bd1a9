"""Predictors that know the truth, or are wrong by a chosen amount. Simulator only."""

import random
from collections.abc import Mapping
from dataclasses import replace

from astraea_local.bench.oracle import Truth
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Job, Rest
from astraea_local.scheduler.predictor import Predictor


class _Knowing(Predictor):
    def __init__(self, truths: Mapping[str, Truth]) -> None:
        super().__init__()
        self._truths = truths


class TrueLengths(_Knowing):
    """Knows the output length of each segment, as Astraea's evaluation does (its "segment-level oracle")."""

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution:
        del prompt_tokens, max_output
        truth = self._truths[job.id]
        return Distribution.of([float(truth.job.calls[truth.call].output_tokens)])


class TrueCalls(_Knowing):
    """Knows how many calls each job still makes, and nothing else of them."""

    def rest(self, job: Job) -> Rest:
        truth = self._truths[job.id]
        left = float(len(truth.job.calls) - truth.call - 1)
        return replace(super().rest(job), segments=left, expected=left)


class TrueCallsAndLengths(TrueCalls, TrueLengths):
    """Knows both."""


class TrueEverything(TrueLengths):
    """Knows the tool waits as well."""

    def wait(self, job: Job) -> Distribution:
        truth = self._truths[job.id]
        return Distribution.of([truth.job.calls[truth.call].tool_s])


class Noisy(Predictor):
    """Every prediction is multiplied by a log-normal factor of its own, `sigma` in natural logarithms."""

    def __init__(self, sigma: float, seed: int, output_tokens: float = 80.0) -> None:
        super().__init__(output_tokens)
        self._sigma = sigma
        self._rng = random.Random(f"{seed} noise")  # noqa: S311 - reproducible, and nothing secret

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution:
        return super().output(job, prompt_tokens, max_output).scaled(self._factor())

    def wait(self, job: Job) -> Distribution:
        return super().wait(job).scaled(self._factor())

    def rest(self, job: Job) -> Rest:
        rest, factor = super().rest(job), self._factor()
        return replace(rest, segments=rest.segments * factor, expected=rest.expected * factor)

    def _factor(self) -> float:
        return self._rng.lognormvariate(0.0, self._sigma)
