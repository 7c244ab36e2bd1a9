"""How many calls a job still makes, from how many others made.

Jobs that run now must count as well: among those that have ended the short ones are too many, most of all
when the server is new. So what is learned is the hazard, the share of jobs that end with their k-th call
among those that got there; every call of every job is an observation of it (Kaplan and Meier's estimate).
"""

import math
from collections.abc import Sequence

# Up to here each call has a hazard of its own, beyond it four to each doubling share one.
_SINGLE = 8
_LONGEST = 256
# A kind's hazard is drawn to that of all jobs, and theirs to the prior, with the weight of so many calls.
_PARENT_WEIGHT = 4.0
_MAX_KINDS = 500
_MOST = 0.5


class _Counts:
    __slots__ = ("ends", "expected", "stamp", "total")

    def __init__(self) -> None:
        size = _bucket(_LONGEST) + 1
        self.total = [0.0] * size
        self.ends = [0.0] * size
        self.expected: Sequence[float] = ()
        self.stamp = -1.0


class Survival:
    """Hazards by kind of job."""

    def __init__(self, mean_calls: float) -> None:
        """`mean_calls` is what is believed of jobs of which nothing is known.

        The prior hazard grows with the number of calls (a Rayleigh distribution). A constant one would take
        every job that goes beyond what was seen for an endless one, let it wait, and never learn better.
        """
        slope = math.pi / (2.0 * mean_calls**2)
        self._prior = [min(_MOST, slope * _least(i)) for i in range(_bucket(_LONGEST) + 1)]
        self._all = _Counts()
        self._kinds: dict[str, _Counts] = {}
        self.count = 0
        """Observations."""

    def observe(self, kind: str, number: int, *, ended: bool) -> None:
        """A job's `number`-th call (from 1) was its last, or another followed."""
        self.count += 1
        index = _bucket(number)
        counts = self._kinds.pop(kind, None) or _Counts()
        self._kinds[kind] = counts  # re-inserted: the first in the dict is the longest unused
        if len(self._kinds) > _MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        for place in (self._all, counts):
            place.total[index] += 1.0
            place.ends[index] += ended

    def remaining(self, kind: str, number: int) -> float:
        """Expected calls after the `number`-th, at which the job is now."""
        counts = self._kinds.get(kind, self._all)
        # A hundredth more of observations does not change the table enough to make it anew.
        if self.count > 1.01 * counts.stamp:
            counts.expected = self._table(counts)
            counts.stamp = float(self.count)
        return counts.expected[min(number, _LONGEST)]

    def _table(self, counts: _Counts) -> Sequence[float]:
        hazards = []
        for index, (total, ends) in enumerate(zip(counts.total, counts.ends, strict=True)):
            seen, ended = self._all.total[index], self._all.ends[index]
            parent = (ended + _PARENT_WEIGHT * self._prior[index]) / (seen + _PARENT_WEIGHT)
            own = (ends + _PARENT_WEIGHT * parent) / (total + _PARENT_WEIGHT)
            hazards.append(parent if counts is self._all else own)
        expected = [0.0] * (_LONGEST + 1)
        expected[_LONGEST] = 1.0 / hazards[-1] - 1.0
        for number in range(_LONGEST - 1, 0, -1):
            expected[number] = (1.0 - hazards[_bucket(number)]) * (1.0 + expected[number + 1])
        return expected


def _bucket(number: int) -> int:
    if number <= _SINGLE:
        return max(0, number - 1)
    return _SINGLE - 1 + math.ceil(4 * math.log2(min(number, _LONGEST) / _SINGLE))


def _least(index: int) -> int:
    """The smallest number of calls in a bucket."""
    return next(number for number in range(1, _LONGEST + 1) if _bucket(number) == index)
