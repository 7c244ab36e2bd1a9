"""The default: whatever delays everyone least, in expectation over the rest of the wait."""

import math
from collections.abc import Sequence
from typing import ClassVar

from astraea_local.scheduler.retention.base import (
    Eviction,
    IdleKv,
    Move,
    ParkedKv,
    Retention,
    Situation,
    Verdict,
    duration,
    keep,
    whose,
)
from astraea_local.scheduler.retention.costs import (
    cheapest,
    fetch_after,
    hold_for,
    holding,
    mean_rest,
    rest_of,
)

_PLACES = {Move.RAM: "RAM", Move.DISK: "disk"}


class Adaptive(Retention):
    """Decision, time to hold and time to bring back from one formula (`costs.py`)."""

    name: ClassVar[str] = "adaptive"
    summary: ClassVar[str] = "least expected delay of all jobs"
    copies_ahead: ClassVar[bool] = True

    def __init__(self, min_tokens: int, prefetch: bool) -> None:
        """Shorter contexts than `min_tokens` are not parked."""
        self._min_tokens = min_tokens
        self._prefetch = prefetch

    def prefetch(self, kv: ParkedKv, at: Situation) -> float | None:
        rest = rest_of(kv, at.now)
        if not self._prefetch or rest is None:
            return None
        return at.now + fetch_after(kv, rest, at)

    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        rest = rest_of(kv, at.now)
        if rest is None:
            return keep("its job waits for a slot")
        rate = holding(kv, at)
        if rate <= 0.0:
            return keep("in nobody's way until somebody asks for its place")
        move, move_s = cheapest(kv, at, self._min_tokens, rate)
        hold, delay = hold_for(rest, rate, move_s)
        held = f"holding costs {rate:.2g} s/s, {_back(kv, rest.mean)}"
        if hold > 0.0:
            return keep(f"{held}; {_named(move, kv)} would cost {duration(move_s)}", at.now + hold)
        fetch = None
        if move is not Move.DROP and kv.useful:
            fetch = self.prefetch(ParkedKv(kv.tokens, move is Move.DISK, kv.since, kv.wait), at)
        return Verdict(move, None, fetch, f"{_named(move, kv)} costs {duration(delay)}; {held}")

    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        """Least delay for each second that a place is free before its owner is back."""

        def price(kv: IdleKv) -> float:
            rest = mean_rest(kv, at.now)
            if rest is None:
                return math.inf
            places = kv.tokens if at.taxed else 1
            return cheapest(kv, at, self._min_tokens)[1] / max(rest * places, 1e-12)

        first = min(candidates, key=lambda kv: (price(kv), self._precious(kv), kv.last_used))
        move, delay = cheapest(first, at, self._min_tokens)
        back = _back(first, mean_rest(first, at.now))
        return Eviction(first.holder, move, f"{back}; {_named(move, first)} costs {duration(delay)}")

    def _precious(self, kv: IdleKv) -> bool:
        return kv.new_tokens > 0 and kv.tokens >= self._min_tokens


def _back(kv: IdleKv, rest: float | None) -> str:
    if rest is None or not kv.useful:
        return whose(kv)
    return f"{whose(kv)}, for about {duration(rest)} more"


def _named(move: Move, kv: IdleKv) -> str:
    if move is Move.DROP:
        return f"recomputing {kv.tokens} tokens"
    if not kv.new_tokens:
        return "bringing back what is parked already"
    return f"the way to {_PLACES[move]} and back"
