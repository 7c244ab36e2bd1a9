"""Idle states and situations to ask retention policies about."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import IdleKv, Situation
from astraea_local.scheduler.speeds import Speeds

# Computing a token takes 10 ms; moving it takes 1 ms each way, and 10 ms from disk.
FAST_MOVES = Speeds(
    prefill_token_s=0.01, kv_token_bytes=1000, save_bytes_s=1e6, restore_bytes_s=1e6, disk_read_bytes_s=1e5
)
# Moving takes longer than computing.
SLOW_MOVES = Speeds(prefill_token_s=0.01, kv_token_bytes=1000, save_bytes_s=1e5, restore_bytes_s=1e5)

GIB = 1 << 30


def idle(
    holder: int = 0,
    tokens: int = 100,
    *,
    wait: float | Sequence[float] | Distribution | None = 1.0,
    since: float = 0.0,
    **changes: Any,
) -> IdleKv:
    """A state of a job in a tool wait; `wait` is its length, or equally likely lengths."""
    if isinstance(wait, int | float):
        wait = [float(wait)]
    if wait is not None and not isinstance(wait, Distribution):
        wait = Distribution.of(wait)
    fields: dict[str, Any] = {
        "job": f"job {holder}",
        "new_tokens": tokens,
        "last_used": since,
        "useful": True,
    }
    return IdleKv(holder=holder, tokens=tokens, since=since, wait=wait, **(fields | changes))


def situation(**changes: Any) -> Situation:
    """A full pool in which nobody waits, and room in every tier."""
    fields: dict[str, Any] = {
        "now": 10.0,
        "speeds": FAST_MOVES,
        "running": 1,
        "step_s": 0.1,
        "waiting": 0,
        "wanted": 500,
        "cells_used": 1000,
        "cells_total": 1000,
        "taxed": True,
        "can_park": True,
        "ram_free": GIB,
        "disk_free": GIB,
    }
    return Situation(**(fields | changes))


@st.composite
def waits(draw: st.DrawFn) -> Distribution:
    """Predicted tool waits."""
    points = sorted(draw(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=12)))
    weights = draw(st.lists(st.floats(1e-3, 1), min_size=len(points), max_size=len(points)))
    return Distribution.of(points, weights)


@st.composite
def states(draw: st.DrawFn, holder: int = 0) -> IdleKv:
    """Anything that can be idle at 1000 s."""
    tokens = draw(st.integers(1, 4000))
    since = 1000.0 - draw(st.sampled_from([0.0, 0.05, 1.0, 30.0, 900.0]))
    return IdleKv(
        holder=holder,
        job=draw(st.sampled_from([None, "a", "b"])),
        tokens=tokens,
        new_tokens=draw(st.one_of(st.just(tokens), st.integers(0, tokens))),
        since=since,
        last_used=since - draw(st.sampled_from([0.0, 5.0])),
        wait=draw(st.none() | waits()),
        useful=draw(st.booleans()),
        pinned=draw(st.booleans()),
        kept_until=draw(st.floats(0, 2000)),
        created=draw(st.floats(0, 1000)),
    )


@st.composite
def candidates(draw: st.DrawFn) -> list[IdleKv]:
    """A few of them, holders 0, 1, 2..."""
    return [draw(states(holder)) for holder in range(draw(st.integers(0, 6)))]


def situations() -> st.SearchStrategy[Situation]:
    """Machines at 1000 s, idle to overloaded."""
    speeds = st.builds(
        Speeds,
        prefill_base_s=st.sampled_from([0.0, 0.05]),
        prefill_token_s=st.sampled_from([1e-4, 5e-3]),
        prefill_pair_s=st.sampled_from([0.0, 1e-6]),
        idle_token_s=st.sampled_from([0.0, 1e-7, 1e-5]),
        save_bytes_s=st.sampled_from([1e7, 4e9]),
        restore_bytes_s=st.sampled_from([1e7, 4e9]),
        disk_read_bytes_s=st.sampled_from([1e6, 1e9]),
    )
    levels = st.sampled_from(["low", "normal", "high", "critical"])
    return st.builds(
        Situation,
        now=st.just(1000.0),
        speeds=speeds,
        running=st.integers(0, 16),
        step_s=st.sampled_from([0.0, 0.01, 0.2]),
        waiting=st.integers(0, 5),
        wanted=st.integers(0, 10_000),
        cells_used=st.integers(0, 8192),
        cells_total=st.just(8192),
        taxed=st.booleans(),
        can_park=st.booleans(),
        ram_free=st.sampled_from([0, 1 << 20, GIB]),
        disk_free=st.sampled_from([0, 1 << 20, GIB]),
        cells_level=levels,
        ram_level=levels,
    )
