"""Continuum (arXiv 2511.02230): KV is held for a time-to-live, then free to be overwritten."""

from collections.abc import Sequence
from typing import ClassVar

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention.base import (
    Eviction,
    IdleKv,
    Move,
    Retention,
    Situation,
    Verdict,
    keep,
    longest_unused,
)


class Ttl(Retention):
    """What is past its time goes first; before that the latest job gives way."""

    name: ClassVar[str] = "ttl"
    summary: ClassVar[str] = "Continuum's time-to-live"

    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        return keep("until somebody needs its place")

    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        expired = [kv for kv in candidates if kv.kept_until < at.now and kv.wait is not None]
        if expired:
            return Eviction(longest_unused(expired).holder, Move.DROP, "past its time-to-live")
        latest = max(candidates, key=lambda kv: kv.created)
        return Eviction(latest.holder, Move.DROP, "the latest job of those within their time-to-live")


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
