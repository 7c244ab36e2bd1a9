"""Levels with their hysteresis, and the context that gives VRAM away and takes it back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.profile import MemorySettings
from astraea_local.scheduler.pressure import (
    CELL_STEP,
    Amount,
    ContextState,
    ElasticContext,
    Gauge,
    Level,
    Pressure,
    Resize,
    Vram,
)

SETTINGS = MemorySettings(low=0.80, high=0.90, critical=0.95, calm_s=60.0, min_context=1024)
GIB = 1 << 30
_SHARES = st.floats(0, 1)


def levels(shares: Sequence[float], step_s: float = 0.5) -> list[Level]:
    gauge = Gauge(SETTINGS)
    return [gauge.update(index * step_s, share) for index, share in enumerate(shares)]


def test_levels_rise_at_once() -> None:
    assert levels([0.5, 0.8, 0.9, 0.95]) == [Level.LOW, Level.NORMAL, Level.HIGH, Level.CRITICAL]
    assert levels([0.0, 1.0]) == [Level.LOW, Level.CRITICAL]


def test_levels_fall_below_the_lower_mark_after_a_while() -> None:
    assert levels([0.96, 0.91, 0.91, 0.91, 0.91, 0.91, 0.91])[-1] is Level.CRITICAL
    assert levels([0.96] + [0.89] * 4)[-1] is Level.CRITICAL
    assert levels([0.96] + [0.89] * 5)[-1] is Level.NORMAL
    assert levels([0.92] + [0.85] * 20)[-1] is Level.HIGH
    assert levels([0.92] + [0.79] * 5)[-1] is Level.LOW


def test_one_reading_above_the_lower_mark_starts_the_while_anew() -> None:
    shares = [0.96] + [0.5] * 4 + [0.91] + [0.5] * 4
    assert levels(shares)[-1] is Level.CRITICAL
    assert levels([*shares, 0.5])[-1] is Level.LOW


@given(st.lists(_SHARES, max_size=40))
def test_no_level_is_lower_than_its_reading_and_none_falls_twice_in_two_seconds(shares: list[float]) -> None:
    seen = levels(shares)
    marks = (SETTINGS.low, SETTINGS.high, SETTINGS.critical)
    assert all(
        level >= sum(share >= mark for mark in marks) for level, share in zip(seen, shares, strict=True)
    )
    falls = [index for index in range(1, len(seen)) if seen[index] < seen[index - 1]]
    assert all(later - earlier >= 4 for earlier, later in pairwise(falls))


@given(st.lists(st.floats(0.901, 1), min_size=1, max_size=40))
def test_readings_around_a_mark_do_not_make_the_level_flap(shares: list[float]) -> None:
    seen = levels(shares)
    assert seen == sorted(seen)


def test_what_is_unknown_has_no_level() -> None:
    pressure = Pressure(SETTINGS)
    found = pressure.update(0.0, {"vram": Amount(100, 2), "cells": Amount(100, 50), "ram": None})
    assert found == {"cells": Level.LOW, "vram": Level.CRITICAL}
    assert pressure.update(0.5, {"cells": Amount(100, 50)}) == {"cells": Level.LOW}
    assert pressure.update(1.0, {"vram": Amount(100, 50)}) == {"vram": Level.LOW}
    assert pressure.levels == {"vram": Level.LOW}


@pytest.mark.parametrize(
    ("total", "free", "share"), [(0, 0, 0.0), (10, 15, 0.0), (10, -5, 1.0), (8, 2, 0.75)]
)
def test_shares_stay_within_0_and_1(total: int, free: int, share: float) -> None:
    assert Amount(total, free).share == share


@dataclass
class Gpu:
    """A GPU with our context on it, and the loop that reads, decides and resizes."""

    context: ContextState
    total: int
    weights: int
    settings: MemorySettings = SETTINGS
    others: int = 0
    now: float = 0.0
    resizes: list[tuple[float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.elastic = ElasticContext(self.settings)
        self.pressure = Pressure(self.settings)

    @property
    def vram(self) -> Vram:
        used = self.weights + self.context.size * self.context.bytes_per_cell + self.others
        return Vram(self.total, max(0, self.total - used), self.others)

    def tick(self, seconds: float = 0.5, *, known: bool = True) -> Resize | None:
        """One reading."""
        self.now += seconds
        vram = self.vram if known else None
        amount = None if vram is None else Amount(vram.total, vram.free)
        level = self.pressure.update(self.now, {"vram": amount}).get("vram")
        resize = self.elastic.decide(self.now, level, vram, self.context)
        if resize is not None:
            self.resizes.append((self.now, self.context.size, resize.size))
            self.context = replace(self.context, size=resize.size, slots=resize.slots)
        return resize

    def run(self, seconds: float, *, known: bool = True) -> list[Resize]:
        """Readings every half a second."""
        found = [self.tick(known=known) for _ in range(int(seconds * 2))]
        return [resize for resize in found if resize is not None]


def per_slot(size: int = 32768, slots: int = 8, **changes: int | bool) -> ContextState:
    state = ContextState(size, size, slots, slots, 65536, unified=False, longest_live_tokens=0)
    return replace(state, **changes)  # type: ignore[arg-type]


def unified(size: int = 32768, **changes: int | bool) -> ContextState:
    state = ContextState(size, size, 4, 4, 65536, unified=True, longest_live_tokens=0)
    return replace(state, **changes)  # type: ignore[arg-type]


def test_our_own_kv_alone_is_no_reason_to_shrink() -> None:
    full = Gpu(unified(), total=8 * GIB, weights=6 * GIB - 100)
    assert full.run(300) == []
    full.others = int(0.04 * full.total)
    assert full.run(300) == []


def test_a_unified_pool_gives_cells_and_takes_them_back() -> None:
    gpu = Gpu(unified(), total=8 * GIB, weights=4 * GIB)
    assert gpu.run(10) == []
    gpu.others = 2 * GIB
    (shrunk,) = gpu.run(30)
    # 7.2 GiB may be used, 6 are others' and weights: 1.2 GiB of 64 KiB are 19,660 cells, 76 steps.
    assert (shrunk.size, shrunk.slots) == (76 * CELL_STEP, 4)
    assert "other processes hold 25% of the VRAM" in shrunk.reason
    assert "32768 cells becomes 19456" in shrunk.reason
    gpu.others = 0
    (grown,) = gpu.run(120)
    assert (grown.size, grown.slots) == (32768, 4)
    assert gpu.resizes[1][0] - gpu.resizes[0][0] >= SETTINGS.calm_s


def test_streams_give_slots_and_keep_their_length() -> None:
    gpu = Gpu(per_slot(), total=8 * GIB, weights=4 * GIB)
    gpu.others = 2 * GIB
    (shrunk,) = gpu.run(30)
    assert (shrunk.size, shrunk.slots) == (4 * 4096, 4)
    assert "8 slots becomes 4" in shrunk.reason
    gpu.others = 0
    assert [(r.size, r.slots) for r in gpu.run(120)] == [(32768, 8)]


def test_it_grows_only_as_far_as_the_use_stays_below_high() -> None:
    gpu = Gpu(per_slot(), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    gpu.run(30)
    gpu.others = int(1.5 * GIB)
    assert [r.slots for r in gpu.run(100)] == [6]
    assert gpu.run(300) == []


def test_a_little_more_room_is_not_worth_a_rebuild() -> None:
    gpu = Gpu(unified(), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    gpu.run(30)
    gpu.others -= 100 << 20
    assert gpu.run(300) == []
    gpu.others -= 300 << 20
    assert len(gpu.run(300)) == 1


def test_pressure_in_between_starts_the_calm_anew() -> None:
    gpu = Gpu(unified(), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    gpu.run(10)
    size = gpu.context.size
    gpu.others = 0
    assert gpu.run(50) == []
    gpu.others = int(4 * GIB * 0.9)
    gpu.tick()
    gpu.others = 0
    grown_at = gpu.now
    assert gpu.context.size < size
    assert len(gpu.run(120)) == 1
    assert gpu.resizes[-1][0] - grown_at >= SETTINGS.calm_s


def test_more_pressure_shrinks_further() -> None:
    gpu = Gpu(unified(), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    assert len(gpu.run(10)) == 1
    gpu.others = 3 * GIB
    assert len(gpu.run(10)) == 1
    gpu.others = 8 * GIB
    assert gpu.run(10)[-1].size == 1024
    assert gpu.run(100) == []


@pytest.mark.parametrize(("live", "floor"), [(0, 1024), (5000, 5120), (5120, 5376)])
def test_the_longest_live_context_always_fits(live: int, floor: int) -> None:
    gpu = Gpu(unified(longest_live_tokens=live), total=8 * GIB, weights=4 * GIB, others=8 * GIB)
    assert gpu.run(10)[-1].size == floor
    assert gpu.run(100) == []


@pytest.mark.parametrize(("slots", "least"), [(8, 1), (64, 2)])
def test_streams_keep_one_slot_and_the_least_context(slots: int, least: int) -> None:
    gpu = Gpu(per_slot(slots=slots, original_slots=slots), total=8 * GIB, weights=4 * GIB, others=8 * GIB)
    assert gpu.run(10)[-1].slots == least
    assert gpu.run(100) == []


def test_a_context_below_the_minimum_is_left_alone() -> None:
    small = Gpu(unified(512), total=8 * GIB, weights=4 * GIB, others=8 * GIB)
    assert small.run(100) == []


def test_a_size_that_is_no_multiple_of_its_slots_comes_back_exactly() -> None:
    gpu = Gpu(per_slot(10_000, 3), total=8 * GIB, weights=6 * GIB, others=2 * GIB)
    assert [(r.size, r.slots) for r in gpu.run(10)] == [(3333, 1)]
    gpu.others = 0
    assert [(r.size, r.slots) for r in gpu.run(100)] == [(10_000, 3)]


def test_a_context_that_cannot_be_made_is_tried_again_ever_more_rarely() -> None:
    gpu = Gpu(unified(), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    tried = []
    while gpu.now < 300:
        kept = gpu.context
        if gpu.tick() is not None:
            tried.append(gpu.now)
        gpu.context = kept
    waits = [later - earlier for earlier, later in pairwise(tried)]
    assert waits == sorted(waits)
    assert waits[0] < 6
    assert max(waits) <= 61
    assert len(tried) < 10


def test_switched_off_or_without_cells_nothing_happens() -> None:
    off = SETTINGS.model_copy(update={"elastic": False})
    assert Gpu(unified(), 8 * GIB, 4 * GIB, settings=off, others=8 * GIB).run(100) == []
    assert Gpu(per_slot(bytes_per_cell=0), 8 * GIB, 4 * GIB, others=8 * GIB).run(100) == []


def test_a_driver_that_stops_answering_neither_shrinks_nor_grows() -> None:
    gpu = Gpu(unified(), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    gpu.run(10)
    gpu.others = 0
    assert gpu.run(300, known=False) == []
    assert len(gpu.run(100)) == 1


def test_the_end_of_a_simulation_is_calm_where_there_is_no_gpu() -> None:
    host = Gpu(unified(in_vram=False), total=8 * GIB, weights=4 * GIB, others=2 * GIB)
    assert len(host.run(10)) == 1
    assert [r.size for r in host.run(100, known=False)] == [32768]


_CONTEXTS = st.builds(
    lambda per, slots, pool, live, cell: ContextState(
        size=per * slots,
        original_size=per * slots,
        slots=slots,
        original_slots=slots,
        bytes_per_cell=cell,
        unified=pool,
        longest_live_tokens=int(live * (per * slots if pool else per)),
    ),
    st.integers(1, 64).map(lambda n: n * CELL_STEP),
    st.integers(1, 16),
    st.booleans(),
    st.floats(0, 1),
    st.integers(1, 100_000),
)
_STEPS = st.lists(
    st.tuples(st.floats(0, 1.2), st.floats(0.05, 90), st.sampled_from([True, True, True, False])), max_size=60
)


@given(_CONTEXTS, _STEPS, st.floats(1, 4), st.sampled_from([0.0, 5.0, 60.0]), st.integers(256, 4096))
def test_under_any_readings_sizes_stay_in_bounds_and_growth_is_rare(
    context: ContextState, steps: list[tuple[float, float, bool]], room: float, calm_s: float, least: int
) -> None:
    kv = context.size * context.bytes_per_cell
    settings = SETTINGS.model_copy(update={"calm_s": calm_s, "min_context": least})
    gpu = Gpu(context, total=int(kv * room * 2), weights=kv // 2, settings=settings)
    for others, seconds, known in steps:
        gpu.others = int(others * gpu.total)
        before = gpu.context
        resize = gpu.tick(seconds, known=known)
        after = gpu.context
        assert min(least, context.size) <= after.size <= context.size
        assert 1 <= after.slots <= context.slots
        if context.unified:
            assert after.slots == context.slots
            assert after.size > context.longest_live_tokens or after.size == context.size
            assert after.size % CELL_STEP == 0
        else:
            assert after.size == after.slots * (context.size // context.slots)
        if resize is not None and after.size > before.size:
            assert known
            assert gpu.vram.free > (1 - settings.high) * gpu.total - 1
        if resize is not None and after.size < before.size:
            assert known
            assert gpu.others >= 0.05 * gpu.total - 1
    growths = [at for at, old, new in gpu.resizes if new > old]
    for earlier, later in pairwise(growths):
        assert later - earlier >= calm_s
    pairs = pairwise(gpu.resizes)
    assert all(new[0] - old[0] >= calm_s for old, new in pairs if new[2] > new[1])
