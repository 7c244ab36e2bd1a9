"""The StateFrame's row about memory."""

from collections.abc import Mapping
from dataclasses import asdict

from astraea_local.engine.memory import Reading
from astraea_local.frame import MemoryRow
from astraea_local.profile import MemorySettings
from astraea_local.scheduler.pressure import Level, Resource


def memory_row(
    reading: Reading,
    levels: Mapping[Resource, Level],
    settings: MemorySettings,
    weights_bytes: int,
    context_bytes: int,
) -> MemoryRow:
    """The row of one reading; host memory that is unknown is shown as 0."""
    measured = asdict(reading)
    for name in ("ram_total", "ram_available", "ram_ours"):
        measured[name] = measured[name] or 0
    return MemoryRow(
        **measured,
        weights_bytes=weights_bytes,
        context_bytes=context_bytes,
        pressure={resource: level.label for resource, level in levels.items()},
        watermarks={"low": settings.low, "high": settings.high, "critical": settings.critical},
    )
