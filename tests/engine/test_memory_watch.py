"""Readings, levels and sizes together, as the step loop uses them: simulated GPU, real host."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from astraea_local.engine.memory import MemoryProbe, Reading
from astraea_local.engine.memory_watch import MemoryWatch
from astraea_local.profile import MemorySettings
from astraea_local.scheduler.pressure import Amount, ContextState, Resize

SETTINGS = MemorySettings(calm_s=10.0, poll_ms=500)
CELL = 1 << 10
HALF_FULL = Amount(8192, 4096)
CONTEXT = ContextState(8192, 8192, 4, 4, CELL, unified=True, longest_live_tokens=100, in_vram=False)
WEIGHTS = 8192 * CELL
TOTAL = 4 * WEIGHTS


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[MemoryWatch]:
    made = MemoryWatch(MemoryProbe((), tmp_path, 60.0), SETTINGS, WEIGHTS)
    made.start()
    yield made
    made.close()


def run(watch: MemoryWatch, context: ContextState, start: float, seconds: float) -> list[Resize]:
    """Ticks every tenth of a second; decisions are carried out."""
    made = []
    for step in range(int(seconds * 10)):
        resize = watch.tick(start + step / 10, HALF_FULL, context)
        if resize is not None:
            made.append(resize)
            context = replace(context, size=resize.size, slots=resize.slots)
    return made


def cells(watch: MemoryWatch) -> str:
    return watch.labels["cells"]


def test_a_machine_without_gpu_has_levels_of_the_rest(watch: MemoryWatch) -> None:
    assert watch.tick(0.0, HALF_FULL, CONTEXT) is None
    assert set(watch.labels) == {"cells", "ram", "disk"}
    assert cells(watch) == "low"
    row = watch.row()
    assert (row.vram_total, row.weights_bytes, row.context_bytes) == (None, WEIGHTS, 8192 * CELL)
    assert row.pressure == watch.labels
    assert row.ram_total > row.ram_available > 0


def test_the_context_follows_simulated_pressure_and_its_end(watch: MemoryWatch) -> None:
    run(watch, CONTEXT, 0.0, 1.0)
    watch.simulate(Reading(vram_total=TOTAL, vram_others=int(0.46 * TOTAL)))
    (shrunk,) = run(watch, CONTEXT, 1.0, 30.0)
    # 0.9 of four parts, of which 1.84 are others' and one is the weights.
    assert shrunk.size == int(0.76 * 8192) // 256 * 256
    assert watch.row().simulated
    small = replace(CONTEXT, size=shrunk.size)
    watch.simulate(None)
    (grown,) = run(watch, small, 31.0, 30.0)
    assert (grown.size, grown.slots) == (8192, 4)
    assert not watch.row().simulated


def test_readings_are_looked_at_in_intervals_but_a_simulation_at_once(watch: MemoryWatch) -> None:
    watch.tick(0.0, HALF_FULL, CONTEXT)
    watch.tick(0.4, Amount(8192, 0), CONTEXT)
    assert cells(watch) == "low"
    watch.simulate(Reading(disk_total=100, disk_free=1))
    watch.tick(0.41, HALF_FULL, CONTEXT)
    assert watch.labels["disk"] == "critical"
    watch.tick(0.92, Amount(8192, 0), CONTEXT)
    assert cells(watch) == "critical"


def test_an_unloaded_model_holds_nothing_and_is_not_resized(watch: MemoryWatch) -> None:
    watch.simulate(Reading(vram_total=TOTAL, vram_others=TOTAL))
    for step in range(20):
        assert watch.tick(step, None, None) is None
    row = watch.row()
    assert (row.weights_bytes, row.context_bytes, row.vram_ours) == (0, 0, 0)
    assert "cells" not in watch.labels
    assert watch.labels["vram"] == "critical"
