"""The row about memory that monitors see."""

from astraea_local.engine.memory import Reading
from astraea_local.engine.memory_frames import memory_row
from astraea_local.frame import MemoryRow
from astraea_local.profile import MemorySettings
from astraea_local.scheduler.pressure import Level

SETTINGS = MemorySettings(low=0.7, high=0.8, critical=0.9)


def test_a_reading_becomes_a_row() -> None:
    reading = Reading("Card", 100, 20, 50, 30, 0.5, 60.0, 1000, 400, 70, 5000, 4000, simulated=True)
    levels = {"cells": Level.LOW, "vram": Level.CRITICAL, "ram": Level.NORMAL, "disk": Level.HIGH}
    assert memory_row(reading, levels, SETTINGS, 30, 20) == MemoryRow(  # type: ignore[arg-type]
        gpu="Card",
        vram_total=100,
        vram_free=20,
        vram_ours=50,
        vram_others=30,
        gpu_load=0.5,
        gpu_temperature=60.0,
        weights_bytes=30,
        context_bytes=20,
        ram_total=1000,
        ram_available=400,
        ram_ours=70,
        disk_total=5000,
        disk_free=4000,
        simulated=True,
        pressure={"cells": "low", "vram": "critical", "ram": "normal", "disk": "high"},
        watermarks={"low": 0.7, "high": 0.8, "critical": 0.9},
    )


def test_what_nothing_tells_is_empty() -> None:
    row = memory_row(Reading(), {}, SETTINGS, 0, 0)
    assert (row.vram_total, row.gpu, row.ram_total, row.pressure) == (None, "", 0, {})
