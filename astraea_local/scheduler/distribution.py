"""Distributions of positive quantities (tokens, seconds, calls), learned from what was seen.

Values are counted in logarithmic bins, 20 to a decade, so that a count of milliseconds and one of hours cost
the same and each bin is known within 12 %. `Empirical` keeps such counts for every node of a path that goes
from the general to the specific, for example `("shell", "shell:pytest")`, and shrinks each node towards its
parent: a verb that was seen twice says little, one that was seen fifty times says nearly everything.
"""

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

_BINS_PER_DECADE = 20
_LEAST = 1e-5
# The parent's distribution counts as much as this many observations.
_PARENT_WEIGHT = 6.0
# A node remembers about so many values: older ones fade, so that a changed tool is learned again.
_MEMORY = 500.0
# Nodes kept: client-chosen names must not grow memory without bound.
_MAX_NODES = 2000
# Predictions kept; each takes some kilobytes.
_MAX_CACHED = 500
# A kept prediction is served until a node of its path has grown by this share since.
_STALE = 0.1


@dataclass(frozen=True, slots=True)
class Distribution:
    """Weighted points in ascending order; the weights sum to one."""

    points: tuple[float, ...]
    weights: tuple[float, ...]
    _above: tuple[float, ...]
    """Weight of the points from each index on, and a last 0."""
    _mass: tuple[float, ...]
    """Sum of point x weight from each index on, and a last 0."""

    @classmethod
    def of(cls, points: Sequence[float], weights: Sequence[float] | None = None) -> "Distribution":
        """From ascending points. Raises `ValueError` when there is none or weights do not fit."""
        if not points or (weights is not None and len(weights) != len(points)):
            raise ValueError("a distribution needs points, and a weight for each")
        raw = [1.0] * len(points) if weights is None else list(weights)
        total = math.fsum(raw)
        shares = [w / total for w in raw]
        above = [*reversed(list(accumulate(reversed(shares)))), 0.0]
        products = [p * s for p, s in zip(points, shares, strict=True)]
        mass = [*reversed(list(accumulate(reversed(products)))), 0.0]
        return cls(tuple(points), tuple(shares), tuple(above), tuple(mass))

    @property
    def mean(self) -> float:
        return self._mass[0]

    def quantile(self, share: float) -> float:
        """The least point at or below which lies `share` (0..1) of the weight."""
        reached = 0.0
        for point, weight in zip(self.points, self.weights, strict=True):
            reached += weight
            if reached >= share - 1e-12:
                return point
        return self.points[-1]

    def quantile_beyond(self, share: float, reached: float) -> float:
        """The same, given that `reached` was passed; past the last point as `remaining` says."""
        above = self.beyond(reached)
        if above <= 0.0:
            return reached + self.remaining(reached)
        # The weights above each point descend, so that the first that is small enough can be searched for.
        left = (1.0 - share) * above + 1e-12
        return self.points[max(1, bisect_left(self._above, -left, key=operator.neg)) - 1]

    def beyond(self, reached: float) -> float:
        """Probability of more than `reached`."""
        return self._above[bisect_right(self.points, reached)]

    def remaining(self, reached: float) -> float:
        """Expected rest, given that `reached` was passed.

        Past the last point nothing is known but that the tail is heavy: the rest is taken for a quarter of
        what has passed.
        """
        index = bisect_right(self.points, reached)
        above = self._above[index]
        if above <= 0.0:
            return max(0.25 * reached, 1e-9)
        return self._mass[index] / above - reached

    def capped(self, limit: float) -> float:
        """Expected value of what is above `limit` counted as `limit`."""
        index = bisect_right(self.points, limit)
        return self._mass[0] - self._mass[index] + limit * self._above[index]

    def thresholds(self) -> Iterator[tuple[float, float, float]]:
        """Every point with its `capped` and its `beyond`; of equal points, those of the last one hold."""
        for point, mass, above in zip(self.points, self._mass[1:], self._above[1:], strict=True):
            yield point, self._mass[0] - mass + point * above, above

    def within(self, reached: float, more: float) -> float:
        """Probability that it ends within `more`, given that `reached` was passed."""
        above = self.beyond(reached)
        return 1.0 - self.beyond(reached + more) / above if above > 0 else 0.0

    def rest(self, reached: float) -> "Distribution":
        """The distribution of what is left, given that `reached` was passed; its mean is `remaining`.

        What is within a rounding error of `reached` counts as passed.
        """
        passed = reached + 1e-9 * (1.0 + reached)
        index = bisect_right(self.points, passed)
        if self._above[index] <= 0.0:
            return Distribution.of([self.remaining(passed)])
        return Distribution.of([p - reached for p in self.points[index:]], self.weights[index:])

    def scaled(self, factor: float) -> "Distribution":
        """The distribution of `factor` times the quantity."""
        return Distribution.of([p * factor for p in self.points], self.weights)


class _Node:
    """Fading counts of one place in the hierarchy."""

    __slots__ = ("added", "bins", "total")

    def __init__(self) -> None:
        self.bins: dict[int, float] = {}
        self.total = 0.0
        self.added = 0
        """Values ever added: unlike `total`, it never stands still."""

    def add(self, index: int) -> None:
        self.added += 1
        if self.total >= _MEMORY:
            fade = (_MEMORY - 1.0) / self.total
            self.bins = {i: n * fade for i, n in self.bins.items() if n * fade > 1e-3}
            self.total = sum(self.bins.values())
        self.bins[index] = self.bins.get(index, 0.0) + 1.0
        self.total += 1.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """A prediction, and until when it holds."""

    made: Distribution
    nodes: tuple[tuple[_Node, float], ...]
    """The nodes that it was made from, each with the most `added` that it may have."""

    @classmethod
    def of(cls, made: Distribution, nodes: Iterable[_Node]) -> "_Kept":
        # Of less than ten values, each new one is more than that share.
        return cls(made, tuple((node, node.added + _STALE * node.total) for node in nodes))

    def holds(self, nodes: Sequence[_Node]) -> bool:
        """Whether it may be served for these. A node that was forgotten and made anew is another one."""
        return len(nodes) == len(self.nodes) and all(
            node is kept and node.added <= most for node, (kept, most) in zip(nodes, self.nodes, strict=True)
        )


class Empirical:
    """Learns a quantity along paths from the general to the specific."""

    def __init__(self, prior: Distribution, prior_weight: float = _PARENT_WEIGHT) -> None:
        """`prior` is what is believed before anything was seen; it counts as `prior_weight` values."""
        self._prior = {_bin(p): 0.0 for p in prior.points}
        for point, weight in zip(prior.points, prior.weights, strict=True):
            self._prior[_bin(point)] += weight
        self._prior_weight = prior_weight
        self._root = _Node()
        self._nodes: dict[str, _Node] = {}
        self._cache: dict[tuple[str, ...], _Kept] = {}
        self.count = 0
        """Values seen."""

    def observe(self, path: Iterable[str], value: float) -> None:
        """Takes in one value at every node of the path, the root included; empty names are skipped."""
        index = _bin(value)
        self._root.add(index)
        self.count += 1
        for name in path:
            if not name:
                continue
            node = self._nodes.pop(name, None) or _Node()
            node.add(index)
            self._nodes[name] = node  # re-inserted: the first in the dict is the longest unused
            if len(self._nodes) > _MAX_NODES:
                del self._nodes[next(iter(self._nodes))]

    def seen(self, name: str) -> float:
        """How many values, fading, the node of that name holds."""
        node = self._nodes.get(name)
        return 0.0 if node is None else node.total

    def predict(self, path: Sequence[str] = ()) -> Distribution:
        """The distribution at the end of the path, each node shrunk towards the one before it.

        Names that were never seen are skipped. It lacks, of each node, at most the values by
        which the node grew by a tenth.
        """
        key = tuple(name for name in path if name in self._nodes)
        nodes = [self._root, *(self._nodes[name] for name in key)]
        kept = self._cache.get(key)
        if kept is not None and kept.holds(nodes):
            return kept.made
        shares: dict[int, float] = dict(self._prior)
        weight = self._prior_weight
        for node in nodes:
            total = node.total + weight
            mixed = {i: s * weight / total for i, s in shares.items()}
            for index, count in node.bins.items():
                mixed[index] = mixed.get(index, 0.0) + count / total
            shares, weight = mixed, _PARENT_WEIGHT
        indices = sorted(shares)
        made = Distribution.of([_value(i) for i in indices], [shares[i] for i in indices])
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[key] = _Kept.of(made, nodes)
        return made


def lognormal(median: float, mean: float) -> Distribution:
    """Fifty equally likely points of a log-normal with that median and mean, for priors."""
    sigma = math.sqrt(2 * math.log(mean / median))
    normal = NormalDist()
    return Distribution.of([median * math.exp(sigma * normal.inv_cdf((i + 0.5) / 50)) for i in range(50)])


def _bin(value: float) -> int:
    return round(_BINS_PER_DECADE * math.log10(max(value, _LEAST)))


def _value(index: int) -> float:
    return float(10 ** (index / _BINS_PER_DECADE))
