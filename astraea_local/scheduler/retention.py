"""Which idle KV gives way when a running segment needs its place, and where it goes."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from astraea_local.scheduler.distribution import Distribution


class Fate(enum.StrEnum):
    """What becomes of an idle KV state."""

    PARK = "park"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class IdleKv:
    """A resident KV state that no running segment uses."""

    holder: int
    tokens: int
    last_used: float
    useful: bool
    """Whether its job is expected to come back."""
    covered: bool = False
    """Whether a parked state or another sequence holds the same tokens."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """The state that gives way."""

    holder: int
    fate: Fate
    reason: str


def evict(idle: Iterable[IdleKv], *, min_tokens: int, can_park: bool) -> Eviction | None:
    """The cheapest idle state to move; None when there is none.

    First what is worth nothing, then finished jobs, then waiting ones, each from the longest unused on.
    Whatever could be wanted again is parked: that costs milliseconds, recomputing costs seconds.
    """
    states = sorted(idle, key=lambda k: (not (k.covered or k.tokens < min_tokens), k.useful, k.last_used))
    if not states:
        return None
    first = states[0]
    if first.covered:
        return Eviction(first.holder, Fate.DROP, "the same tokens are kept elsewhere")
    if first.tokens < min_tokens:
        return Eviction(first.holder, Fate.DROP, f"{first.tokens} tokens are quicker recomputed than parked")
    if not can_park:
        return Eviction(first.holder, Fate.DROP, "parking is off or impossible")
    whose = "waiting" if first.useful else "finished"
    return Eviction(first.holder, Fate.PARK, f"longest unused of the {whose} jobs")


def best_ttl(wait: Distribution, missed_s: float) -> float:
    """Seconds to hold the KV of a job that waits for a tool, Continuum's equation 2; 0 = not at all.

    Holding for t costs t; a job that returns within it saves `missed_s`. Of the durations seen, the one with
    the largest P(wait <= t) x missed_s - t.
    """
    best, gain, share = 0.0, 0.0, 0.0
    for point, weight in zip(wait.points, wait.weights, strict=True):
        share += weight
        if share * missed_s - point > gain:
            best, gain = point, share * missed_s - point
    return best
