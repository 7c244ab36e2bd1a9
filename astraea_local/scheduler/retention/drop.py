"""vLLM without prefix caching: a tool call ends the request, its return is a new one."""

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


class Drop(Retention):
    """Nothing outlives the call."""

    name: ClassVar[str] = "drop"
    summary: ClassVar[str] = "dropped when the call ends"
    shares: ClassVar[bool] = False

    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        if kv.useful and kv.wait is None:
            return keep("its call has not ended: it waits for a slot")
        return Verdict(Move.DROP, None, None, "its call has ended")

    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        first = longest_unused(candidates)
        return Eviction(first.holder, Move.DROP, f"longest unused, {whose(first)}; nothing is parked")
