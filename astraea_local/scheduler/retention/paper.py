"""Astraea (arXiv 2512.14142), section 4.4: kept below a watermark, above it the least of equations 5 to 7."""

from collections.abc import Sequence
from typing import ClassVar

from astraea_local.scheduler.retention.base import (
    Eviction,
    IdleKv,
    Move,
    Retention,
    Situation,
    Verdict,
    duration,
    keep,
    to_ram,
)


class Paper(Retention):
    """Decides once, by the mean of the whole wait.

    With M, the bytes of a token, cancelled: keep `T_api C_self`, discard `T_recompute C_batch`, swap
    `2 T_swap C_batch`. Under need the largest first of them gives way, as in InferCept.
    """

    name: ClassVar[str] = "paper"
    summary: ClassVar[str] = "Astraea's watermark and equations 5 to 7"

    def __init__(self, watermark: float) -> None:
        """`watermark`: share (0..1) of the cells in use from which it is no longer simply kept."""
        self._watermark = watermark

    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        if kv.wait is None:
            return keep("no tool wait to weigh")
        share = at.cells_used / max(1, at.cells_total)
        if share < self._watermark:
            return keep(f"{share:.0%} of the cells in use, watermark {self._watermark:.0%}")
        preserve = kv.wait.mean * kv.tokens
        discard = at.speeds.prefill(kv.tokens, 0) * at.wanted
        swap = 2 * at.speeds.save(kv.tokens) * at.wanted
        reason = f"waste in token-seconds: keep {preserve:.3g}, drop {discard:.3g}, swap {swap:.3g}"
        if preserve <= min(discard, swap):
            return keep(reason)
        move = to_ram(kv, at) if swap < discard else Move.DROP
        return Verdict(move, None, None, reason)

    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        first = max(candidates, key=lambda kv: (kv.wait.mean if kv.wait else 0.0) * kv.tokens)
        swap, drop = 2 * at.speeds.save(first.tokens), at.speeds.prefill(first.tokens, 0)
        move = to_ram(first, at) if swap < drop else Move.DROP
        reason = f"largest waste by keeping; swapping takes {duration(swap)}, recomputing {duration(drop)}"
        return Eviction(first.holder, move, reason)
