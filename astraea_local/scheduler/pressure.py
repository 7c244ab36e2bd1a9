"""How scarce each memory is, and when the context has to become smaller or may grow back.

Pure: readings and times come in, levels and decisions go out. Times are seconds on one clock that never goes
back.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from astraea_local.profile import MemorySettings

Resource = Literal["cells", "vram", "ram", "disk"]
RESOURCES: tuple[Resource, ...] = ("cells", "vram", "ram", "disk")

# llama.cpp rounds a sequence's share of the context up to this many cells (GGML_PAD in llama_context).
CELL_STEP = 256

# A level has to be unfounded for so long before it falls, and a new context has to show in the readings.
_SETTLE_S = 2.0
# A context that could not be made is not tried again for twice as long as before, up to this.
_LONGEST_WAIT_S = 60.0
# Other processes are a reason to shrink when they hold this share of the VRAM; an idle desktop holds less.
_RELEVANT = 0.05
# To be worth a rebuild, growth is this share of the context that was asked for, or all that is missing.
_LEAST_GROWTH = 1 / 8


class Level(enum.IntEnum):
    """How scarce a memory is."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3

    @property
    def label(self) -> Literal["low", "normal", "high", "critical"]:
        """As the StateFrame names it."""
        return _LABELS[self]


_LABELS: tuple[Literal["low", "normal", "high", "critical"], ...] = ("low", "normal", "high", "critical")


@dataclass(frozen=True, slots=True)
class Amount:
    """A memory's size and what is free of it, in one unit."""

    total: int
    free: int

    @property
    def share(self) -> float:
        """In use, 0..1."""
        return min(1.0, max(0.0, 1 - self.free / self.total)) if self.total > 0 else 0.0


@dataclass(slots=True)
class Gauge:
    """The level of one memory: it rises at once, and falls when a lower mark has held for a while.

    `critical` falls below the mark `high`, and `high` below the mark `low`; both take two seconds.
    """

    settings: MemorySettings
    level: Level = Level.LOW
    _below_since: float | None = None

    def update(self, now: float, share: float) -> Level:
        """Takes in one reading, 0..1, and returns the level."""
        found = self._of(share)
        if found >= self.level or share >= self._fall_below:
            self._below_since = None
            self.level = max(self.level, found)
        elif self._below_since is None:
            self._below_since = now
        elif now - self._below_since >= _SETTLE_S:
            self._below_since = None
            self.level = found
        return self.level

    def _of(self, share: float) -> Level:
        marks = (self.settings.low, self.settings.high, self.settings.critical)
        return Level(sum(share >= mark for mark in marks))

    @property
    def _fall_below(self) -> float:
        return self.settings.high if self.level is Level.CRITICAL else self.settings.low


class Pressure:
    """The levels of all memories that are known."""

    def __init__(self, settings: MemorySettings) -> None:
        self._settings = settings
        self._gauges: dict[Resource, Gauge] = {}

    def update(self, now: float, amounts: Mapping[Resource, Amount | None]) -> dict[Resource, Level]:
        """Takes in one reading of each and returns their levels; what is unknown (None) has no level."""
        for resource in RESOURCES:
            amount = amounts.get(resource)
            if amount is None:
                self._gauges.pop(resource, None)
            else:
                self._gauges.setdefault(resource, Gauge(self._settings)).update(now, amount.share)
        return self.levels

    @property
    def levels(self) -> dict[Resource, Level]:
        """As of the last reading, in the order of `RESOURCES`."""
        return {resource: self._gauges[resource].level for resource in RESOURCES if resource in self._gauges}


@dataclass(frozen=True, slots=True)
class ContextState:
    """The context as it is, and as the user asked for it; sizes in cells."""

    size: int
    original_size: int
    slots: int
    original_slots: int
    bytes_per_cell: int
    """Memory that one cell less gives back."""
    unified: bool
    longest_live_tokens: int
    """Of the segments that run or wait: a context that does not hold more than that would end one of them."""
    in_vram: bool = True
    """False on a machine without a GPU, where only a simulation knows of VRAM."""


@dataclass(frozen=True, slots=True)
class Vram:
    """A reading of the GPU's memory, bytes."""

    total: int
    free: int
    others: int
    """Held by other processes."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The context to make instead of the present one."""

    size: int
    slots: int
    reason: str


@dataclass(slots=True)
class ElasticContext:
    """Decides when the context gives VRAM to other processes, and when it takes it back.

    It shrinks while VRAM is critical and others hold a relevant part of it, by what brings the use below
    `memory.high`. It grows back after `memory.calm_s` below `high`, as far as the use stays below `high`.
    """

    settings: MemorySettings
    _calm_since: float | None = field(default=None, init=False)
    _wait_until: float = field(default=float("-inf"), init=False)
    _wait_s: float = field(default=_SETTLE_S, init=False)
    _expected: tuple[int, int] | None = field(default=None, init=False)

    def decide(
        self, now: float, level: Level | None, vram: Vram | None, context: ContextState
    ) -> Resize | None:
        """What to do at this reading, if anything; `level` is that of VRAM, None where it is unknown.

        The next decision waits until the readings can show this one; longer, when `context` shows later that
        it was not carried out.
        """
        calm = level < Level.HIGH if level is not None else not context.in_vram
        if not calm:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        # A recurrent model's state has no cells that could be given back.
        possible = self.settings.elastic and context.bytes_per_cell > 0
        self._learn(now, context)
        if not possible or now < self._wait_until:
            return None
        resize = None
        if level is Level.CRITICAL and vram is not None:
            resize = _shrink(vram, context, self.settings)
        elif self._calm_since is not None and now - self._calm_since >= self.settings.calm_s:
            resize = _grow(vram, context, self.settings)
        if resize is not None:
            self._expected = (resize.size, resize.slots)
            self._calm_since = None
        return resize

    def _learn(self, now: float, context: ContextState) -> None:
        if self._expected is None:
            return
        done = self._expected == (context.size, context.slots)
        self._wait_s = _SETTLE_S if done else min(_LONGEST_WAIT_S, 2 * self._wait_s)
        self._wait_until = now + self._wait_s
        self._expected = None


def _shrink(vram: Vram, context: ContextState, settings: MemorySettings) -> Resize | None:
    used = vram.total - vram.free
    if used < settings.critical * vram.total or vram.others < _RELEVANT * vram.total:
        return None
    # One byte more than the mark allows is still too much.
    excess = math.floor(used - settings.high * vram.total) + 1
    size, slots = _fit(context.size - math.ceil(excess / context.bytes_per_cell), context, settings)
    if size >= context.size:
        return None
    share = f"{vram.others / vram.total:.0%} of the VRAM"
    return Resize(size, slots, f"other processes hold {share}: {_change(context, size, slots)}")


def _grow(vram: Vram | None, context: ContextState, settings: MemorySettings) -> Resize | None:
    if context.size >= context.original_size:
        return None
    size, slots = context.original_size, context.original_slots
    if vram is not None:
        room = math.ceil(settings.high * vram.total) - 1 - (vram.total - vram.free)
        wanted = context.size + max(0, room) // context.bytes_per_cell
        if wanted < size:
            size, slots = _fit(wanted, context, settings)
    complete = size == context.original_size
    if size <= context.size or not (complete or size - context.size >= _LEAST_GROWTH * context.original_size):
        return None
    return Resize(size, slots, f"there is VRAM again: {_change(context, size, slots)}")


def _fit(wanted: int, context: ContextState, settings: MemorySettings) -> tuple[int, int]:
    """(size, slots) of the largest possible context of at most `wanted` cells, or of the smallest allowed."""
    if context.unified:
        floor = max(settings.min_context, context.longest_live_tokens + 1)
        floor = math.ceil(floor / CELL_STEP) * CELL_STEP
        size = max(wanted // CELL_STEP * CELL_STEP, floor)
        return min(size, context.original_size), context.original_slots
    per_slot = context.original_size // context.original_slots
    fewest = max(1, math.ceil(min(settings.min_context, context.original_size) / per_slot))
    slots = min(max(wanted // per_slot, fewest), context.original_slots)
    # The size that was asked for need not be a multiple of its slots.
    return (context.original_size if slots == context.original_slots else slots * per_slot), slots


def _change(context: ContextState, size: int, slots: int) -> str:
    if context.unified:
        return f"context of {context.size} cells becomes {size}"
    return f"context of {context.slots} slots becomes {slots}"
