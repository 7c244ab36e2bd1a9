"""A trained quantile model, evaluated without torch, and the features that it is trained and asked with.

`Statistics` sees every segment and every tool wait when it ends, in the order in which they end, and says
what is known when the next one begins. Training replays recorded history through the same class, so that a
model is asked exactly what it was trained on. All features are logarithms, of quantities that span decades.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from astraea_local.scheduler.distribution import Distribution

Array = NDArray[np.float64]

OUTPUT_FEATURES = (
    "finished segments",
    "prompt tokens",
    "new tokens",
    "max_output",
    "mean of all",
    "mean of the kind",
    "spread of the kind",
    "trust in the kind",
    "mean of the kind at this number",
    "spread of the kind at this number",
    "trust in the kind at this number",
    "mean of the job",
    "last of the job",
)
WAIT_FEATURES = (
    "finished segments",
    "mean of all",
    "mean of the kind",
    "trust in the kind",
    "mean of the tool",
    "spread of the tool",
    "trust in the tool",
    "mean of the verb",
    "spread of the verb",
    "trust in the verb",
    "mean of the job",
    "trust in the job",
    "last of the job",
    "output tokens of the call",
)
MOST_DEVIATION = 4.0
"""Standardised features are cut here: beyond lies what training has not seen."""
LEAST_WAIT_S = 1e-3
"""Shorter waits are taken for this long: no decision depends on the difference."""

# A mean remembers about so many values: older ones fade.
_MEMORY = 500.0
# The mean of the level above counts as much as this many values.
_PARENT_WEIGHT = 4.0
# What is believed before anything was seen, mean and variance of the logarithm; it fades like any parent.
_OUTPUT_PRIOR = (math.log(80.0), 2 * math.log(167 / 80))
_WAIT_PRIOR = (math.log(0.3), 2 * math.log(4.0 / 0.3))
# From this segment on, all numbers of a kind share one mean.
_LAST_NUMBER = 12
# Client-chosen names must not grow memory without bound.
_MAX_MEANS = 4000
_MAX_JOBS = 2000
# Larger weights are no trained model's; smaller ones cannot overflow.
_MOST_WEIGHT = 1e6
# No token count and no time is beyond e to this power.
_MOST_LOG = 50.0

_Key = tuple[str, str] | tuple[str, str, int]
_Normal = tuple[float, float]  # mean and variance of a logarithm


class LearnedModel:
    """Quantiles of one positive quantity, given its features.

    A network of two hidden layers beside a linear term. Its first output is the logarithm of the lowest
    quantile, each further one, made positive, the distance to the next: quantiles cannot cross.
    """

    def __init__(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes F features, H hidden units and Q quantiles from arrays of these shapes.

        `center` (F,) and `scale` (F,): mean and inverse deviation of the features; `w1` (F, H), `b1` (H,),
        `w2` (H, H), `b2` (H,), `w3` (H, Q), `b3` (Q,), `linear` (F, Q): the network; `bounds` (2,): least and
        greatest logarithm that is ever predicted; `levels` (Q,): ascending shares between 0 and 1. Further
        arrays are ignored. Raises `ValueError` when one is missing or does not fit.
        """
        try:
            found = {name: np.ascontiguousarray(arrays[name], dtype=np.float64) for name in _SHAPES}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a trained model: {error}") from None
        features, hidden, quantiles = (len(found[name]) for name in ("center", "b1", "b3"))
        sizes = {"F": features, "H": hidden, "Q": quantiles, "2": 2}
        for name, shape in _SHAPES.items():
            array = found[name]
            if array.shape != tuple(sizes[letter] for letter in shape):
                raise ValueError(f"not a trained model: {name} has the shape {array.shape}")
            if not np.all(np.abs(array) <= _MOST_WEIGHT):
                raise ValueError(f"not a trained model: {name} is not finite or far too large")
        levels = found["levels"].tolist()
        edges = [0.0, *((low + high) / 2 for low, high in pairwise(levels)), 1.0]
        self._shares = [high - low for low, high in pairwise(edges)]
        if not levels or min(self._shares) <= 0 or levels[0] <= 0 or levels[-1] >= 1:
            raise ValueError("not a trained model: levels are not ascending between 0 and 1")
        self._arrays = found
        self._low, self._high = np.clip(found["bounds"], -_MOST_LOG, _MOST_LOG).tolist()

    @property
    def feature_count(self) -> int:
        """How many features it is asked with."""
        return len(self._arrays["center"])

    def predict(self, features: Sequence[float]) -> Distribution:
        """The distribution whose points are the predicted quantiles, each with the weight around its level.

        `features` are finite and as many as it was trained with; raises `ValueError` for another number.
        """
        if len(features) != self.feature_count:
            raise ValueError(f"{len(features)} features, expected {self.feature_count}")
        a = self._arrays
        x = np.clip((np.array(features) - a["center"]) * a["scale"], -MOST_DEVIATION, MOST_DEVIATION)
        hidden = np.tanh(np.tanh(x @ a["w1"] + a["b1"]) @ a["w2"] + a["b2"])
        out = hidden @ a["w3"] + x @ a["linear"] + a["b3"]
        out[1:] = np.logaddexp(0.0, out[1:])
        logs = np.clip(np.cumsum(out), self._low, self._high)
        return Distribution.of(np.exp(logs).tolist(), self._shares)


_SHAPES = {
    "center": "F",
    "scale": "F",
    "w1": "FH",
    "b1": "H",
    "w2": "HH",
    "b2": "H",
    "w3": "HQ",
    "b3": "Q",
    "linear": "FQ",
    "bounds": "2",
    "levels": "Q",
}


@dataclass(frozen=True, slots=True)
class LearnedPair:
    """The models that beat the empirical distributions; None where none does."""

    output: LearnedModel | None = None
    wait: LearnedModel | None = None


class _Mean:
    """Fading mean and variance."""

    __slots__ = ("count", "mean", "variance")

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.variance = 0.0

    def add(self, value: float) -> None:
        self.count = min(self.count + 1.0, _MEMORY)
        step = value - self.mean
        self.mean += step / self.count
        self.variance += (step * (value - self.mean) - self.variance) / self.count

    @property
    def trust(self) -> float:
        """Weight (0..1) against the level above. It soon settles: a count would outgrow what training saw."""
        return self.count / (self.count + _PARENT_WEIGHT)

    def shrunk(self, parent: _Normal) -> _Normal:
        """Mean and variance of the values here together with a few from `parent`."""
        share = self.trust
        apart = self.mean - parent[0]
        variance = parent[1] + share * (self.variance - parent[1]) + share * (1 - share) * apart * apart
        return parent[0] + share * apart, variance


class _Job:
    """What one job did so far, as logarithms."""

    __slots__ = ("last_output", "last_wait", "outputs", "segments", "waits")

    def __init__(self) -> None:
        self.segments = 0
        self.outputs = _Mean()
        self.waits = _Mean()
        self.last_output: float | None = None
        self.last_wait: float | None = None


_NO_VALUES = _Mean()
_NO_JOB = _Job()


class Statistics:
    """Running means of what has ended; answers in a few microseconds and forgets what is longest unused."""

    def __init__(self) -> None:
        self._outputs = _Mean()
        self._waits = _Mean()
        self._means: dict[_Key, _Mean] = {}
        self._jobs: dict[str, _Job] = {}

    def observe_segment(self, kind: str, job: str, output_tokens: int) -> None:
        """A segment of the job has ended with so many tokens. `kind` may be ""."""
        length = math.log(max(1, output_tokens))
        state = self._job(job)
        self._outputs.add(length)
        self._mean(("output", kind)).add(length)
        self._mean(("number", kind, min(state.segments, _LAST_NUMBER))).add(length)
        state.outputs.add(length)
        state.last_output = length
        state.segments += 1

    def observe_wait(self, kind: str, job: str, tool: str, seconds: float) -> None:
        """The job's wait for `tool` ("bash:pytest", or "" when unknown) has ended."""
        wait = math.log(max(LEAST_WAIT_S, seconds))
        state = self._job(job)
        self._waits.add(wait)
        for key in _wait_keys(kind, tool):
            self._mean(key).add(wait)
        state.waits.add(wait)
        state.last_wait = wait

    def output_features(
        self, kind: str, job: str, *, prompt_tokens: int, new_tokens: int, max_output: int
    ) -> tuple[float, ...]:
        """What `OUTPUT_FEATURES` names, for the segment of the job that arrives now."""
        state = self._jobs.get(job, _NO_JOB)
        everything = self._outputs.shrunk(_OUTPUT_PRIOR)
        of_kind = self._means.get(("output", kind), _NO_VALUES)
        by_kind = of_kind.shrunk(everything)
        of_number = self._means.get(("number", kind, min(state.segments, _LAST_NUMBER)), _NO_VALUES)
        by_number = of_number.shrunk(by_kind)
        return (
            math.log1p(state.segments),
            math.log1p(max(0, prompt_tokens)),
            math.log1p(max(0, new_tokens)),
            math.log1p(max(0, max_output)),
            everything[0],
            by_kind[0],
            math.sqrt(by_kind[1]),
            of_kind.trust,
            by_number[0],
            math.sqrt(by_number[1]),
            of_number.trust,
            state.outputs.shrunk(by_kind)[0],
            by_kind[0] if state.last_output is None else state.last_output,
        )

    def wait_features(self, kind: str, job: str, tool: str) -> tuple[float, ...]:
        """What `WAIT_FEATURES` names, for the wait of the job that begins now."""
        state = self._jobs.get(job, _NO_JOB)
        everything = self._waits.shrunk(_WAIT_PRIOR)
        of_kind, of_tool, of_verb = (self._means.get(key, _NO_VALUES) for key in _wait_keys(kind, tool))
        by_kind = of_kind.shrunk(everything)
        by_tool = of_tool.shrunk(by_kind)
        by_verb = of_verb.shrunk(by_tool)
        return (
            math.log1p(state.segments),
            everything[0],
            by_kind[0],
            of_kind.trust,
            by_tool[0],
            math.sqrt(by_tool[1]),
            of_tool.trust,
            by_verb[0],
            math.sqrt(by_verb[1]),
            of_verb.trust,
            state.waits.shrunk(by_kind)[0],
            state.waits.trust,
            by_kind[0] if state.last_wait is None else state.last_wait,
            0.0 if state.last_output is None else state.last_output,
        )

    def _mean(self, key: _Key) -> _Mean:
        found = self._means.pop(key, None) or _Mean()
        self._means[key] = found  # re-inserted: the first in the dict is the longest unused
        if len(self._means) > _MAX_MEANS:
            del self._means[next(iter(self._means))]
        return found

    def _job(self, job: str) -> _Job:
        found = self._jobs.pop(job, None) or _Job()
        self._jobs[job] = found
        if len(self._jobs) > _MAX_JOBS:
            del self._jobs[next(iter(self._jobs))]
        return found


def _wait_keys(kind: str, tool: str) -> tuple[_Key, _Key, _Key]:
    return ("wait", kind), ("tool", tool.partition(":")[0]), ("verb", tool)
