"""llama-server with its RAM prompt cache: the longest unused goes to host memory."""

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
    to_ram,
    whose,
)


class Lru(Retention):
    """Kept until somebody needs the place, then parked."""

    name: ClassVar[str] = "lru"
    summary: ClassVar[str] = "longest unused to RAM"

    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        return keep("until somebody needs its place")

    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        first = longest_unused(candidates)
        move = to_ram(first, at)
        full = "" if move is Move.RAM else "; RAM cannot take it"
        return Eviction(first.holder, move, f"longest unused, {whose(first)}{full}")
