"""What the step loop asks about memory: levels for retention, sizes for the context, a row to show."""

from astraea_local.engine.memory import MemoryProbe, Reading
from astraea_local.engine.memory_frames import memory_row
from astraea_local.frame import MemoryRow, PressureLevel
from astraea_local.profile import MemorySettings
from astraea_local.scheduler.pressure import (
    Amount,
    ContextState,
    ElasticContext,
    Level,
    Pressure,
    Resize,
    Resource,
    Vram,
)


class MemoryWatch:
    """Turns the probe's readings into levels and decisions; owned by the engine's thread."""

    def __init__(self, probe: MemoryProbe, settings: MemorySettings, weights_bytes: int) -> None:
        self._probe = probe
        self._settings = settings
        self._weights_bytes = weights_bytes
        self._context_bytes = 0
        self._pressure = Pressure(settings)
        self._elastic = ElasticContext(settings)
        self._next = float("-inf")
        self._loaded = True

    def start(self) -> None:
        """Begins to read."""
        self._probe.start()

    def close(self) -> None:
        """Ends the probe's thread."""
        self._probe.close()

    def simulate(self, given: Reading | None) -> None:
        """What `given` knows replaces what is read, from the next `tick` on; None ends it."""
        self._probe.simulate(given)
        self._next = float("-inf")

    def tick(self, now: float, cells: Amount | None, context: ContextState | None) -> Resize | None:
        """Looks at the newest reading when `memory.poll_ms` have passed; says how the context should change.

        `cells` are those of the context; both are None while there is no context. `now` is monotonic seconds.
        """
        if now < self._next:
            return None
        self._next = now + self._settings.poll_ms / 1000
        self._loaded = context is not None
        self._context_bytes = 0 if context is None else context.size * context.bytes_per_cell
        self._probe.own_bytes = self._weights_bytes + self._context_bytes if self._loaded else 0
        reading = self._probe.reading
        levels = self._pressure.update(
            now,
            {
                "cells": cells,
                "vram": _amount(reading.vram_total, reading.vram_free),
                "ram": _amount(reading.ram_total, reading.ram_available),
                "disk": _amount(reading.disk_total, reading.disk_free),
            },
        )
        if context is None:
            return None
        return self._elastic.decide(now, levels.get("vram"), _vram(reading), context)

    @property
    def levels(self) -> dict[Resource, Level]:
        """As of the last `tick`; what is unknown is missing."""
        return self._pressure.levels

    @property
    def labels(self) -> dict[str, PressureLevel]:
        """The levels as the StateFrame and the retention policies name them."""
        return {resource: level.label for resource, level in self.levels.items()}

    def row(self) -> MemoryRow:
        """The newest reading and the levels, for the StateFrame."""
        weights = self._weights_bytes if self._loaded else 0
        return memory_row(self._probe.reading, self.levels, self._settings, weights, self._context_bytes)


def _amount(total: int | None, free: int | None) -> Amount | None:
    return None if total is None or free is None else Amount(total, free)


def _vram(reading: Reading) -> Vram | None:
    total, free, others = reading.vram_total, reading.vram_free, reading.vram_others
    return None if total is None or free is None or others is None else Vram(total, free, others)
