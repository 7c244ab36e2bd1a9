"""Prefix caching on the device only: idle KV stays until somebody needs its place."""

from collections.abc import Sequence
from typing import ClassVar

from astraea_local.scheduler.retention.base import (
    Eviction,
    IdleKv,
    Move,
    Retention,
    Situation,
    Verdict,
    keep,
    longest_unused,
    whose,
)


class Keep(Retention):
    """The longest unused is overwritten."""

    name: ClassVar[str] = "keep"
    summary: ClassVar[str] = "kept until overwritten, longest unused first"

    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        return keep("until somebody needs its place")

    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        first = longest_unused(candidates)
        return Eviction(first.holder, Move.DROP, f"longest unused, {whose(first)}; nothing is parked")
