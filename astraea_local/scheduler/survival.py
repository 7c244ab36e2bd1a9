"""How many calls a job still makes, from how many others made.

Jobs that run now must count as well: among those that have ended the short ones are too many, most of all
when the server is new. So what is learned is the hazard, the share of jobs that end with their k-th call
among those that got there; every call of every job is an observation of it (Kaplan and Meier's estimate).

Of a family in which many jobs end soon and a few go on for long, the mean is made by the few. Who chooses
among jobs looks at what it takes to see one end, when it may be given up for another after any number of
calls: the least of (calls made) / (probability of the end), Gittins' index with calls as work.
"""

import math
from collections.abc import Sequence
from functools import cache

# Up to here each call has a hazard of its own, beyond it four to each doubling share one.
_SINGLE = 8
_LONGEST = 256
# A kind's hazard is drawn to that of all jobs, and theirs to the prior, with the weight of so many calls.
_PARENT_WEIGHT = 4.0
_MAX_KINDS = 500
_MOST = 0.5


class _Counts:
    __slots__ = ("efforts", "ends", "expected", "hazards", "stamp", "total")

    def __init__(self) -> None:
        size = _bucket(_LONGEST) + 1
        self.total = [0.0] * size
        self.ends = [0.0] * size
        self.hazards: Sequence[float] = ()
        self.expected: Sequence[float] = ()
        self.efforts: dict[int, float] = {}
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
        return self._counts(kind).expected[min(number, _LONGEST)]

    def effort(self, kind: str, number: int) -> float:
        """Calls after the `number`-th that it takes, at best, for each job that ends; at most `remaining`."""
        counts, number = self._counts(kind), min(number, _LONGEST)
        found = counts.efforts.get(number)
        if found is None:
            found = counts.efforts[number] = min(_effort(counts.hazards, number), counts.expected[number])
        return found

    def _counts(self, kind: str) -> _Counts:
        counts = self._kinds.get(kind, self._all)
        # A hundredth more of observations does not change the tables enough to make them anew.
        if self.count > 1.01 * counts.stamp:
            counts.hazards = self._hazards(counts)
            counts.expected = _expected(counts.hazards)
            counts.efforts = {}
            counts.stamp = float(self.count)
        return counts

    def _hazards(self, counts: _Counts) -> list[float]:
        hazards = []
        for index, (total, ends) in enumerate(zip(counts.total, counts.ends, strict=True)):
            seen, ended = self._all.total[index], self._all.ends[index]
            parent = (ended + _PARENT_WEIGHT * self._prior[index]) / (seen + _PARENT_WEIGHT)
            own = (ends + _PARENT_WEIGHT * parent) / (total + _PARENT_WEIGHT)
            hazards.append(parent if counts is self._all else own)
        return hazards


def _expected(hazards: Sequence[float]) -> list[float]:
    expected = [0.0] * (_LONGEST + 1)
    expected[_LONGEST] = 1.0 / hazards[-1] - 1.0
    for number in range(_LONGEST - 1, 0, -1):
        expected[number] = (1.0 - hazards[_bucket(number)]) * (1.0 + expected[number + 1])
    return expected


def _effort(hazards: Sequence[float], number: int) -> float:
    # Where the hazard stays the same the ratio only falls or only rises: the least is at the end of a bucket.
    made = ended = 0.0
    there, least = 1.0, math.inf
    for index in range(_bucket(number), len(hazards)):
        calls = _most(index) - number + 1
        ends = -math.expm1(calls * math.log1p(-hazards[index]))
        made += there * ends / hazards[index]
        ended += there * ends
        there *= 1.0 - ends
        least = min(least, made / ended)
        number += calls
    return least - 1.0


def _bucket(number: int) -> int:
    if number <= _SINGLE:
        return max(0, number - 1)
    return _SINGLE - 1 + math.ceil(4 * math.log2(min(number, _LONGEST) / _SINGLE))


@cache
def _most(index: int) -> int:
    """The largest number of calls in a bucket."""
    return _LONGEST if index == _bucket(_LONGEST) else _least(index + 1) - 1


def _least(index: int) -> int:
    """The smallest number of calls in a bucket."""
    return next(number for number in range(1, _LONGEST + 1) if _bucket(number) == index)
