"""What a retention policy is asked, and what it answers: where the KV goes that no running segment uses."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.speeds import Speeds

Level = Literal["low", "normal", "high", "critical"]


class Move(enum.StrEnum):
    """What becomes of a KV state."""

    KEEP = "keep"
    RAM = "ram"
    DISK = "disk"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class IdleKv:
    """A resident KV state that no running segment uses. Times are seconds of one clock."""

    holder: int
    """Whatever the caller knows it by."""
    job: str | None
    tokens: int
    new_tokens: int
    """Of them, those that no parked state covers yet: what parking would copy."""
    since: float
    """Idle since."""
    last_used: float
    wait: Distribution | None
    """Predicted length of its tool wait in all; None: it waits for a slot, or is finished."""
    useful: bool
    """Whether its job is expected to come back."""
    pinned: bool = False
    kept_until: float = 0.0
    """Until when the scheduling policy promised to keep it."""
    created: float = 0.0
    """When its job came."""


@dataclass(frozen=True, slots=True)
class ParkedKv:
    """A KV state outside the context."""

    tokens: int
    on_disk: bool
    since: float
    """Its job waits since."""
    wait: Distribution | None
    """Predicted length of its tool wait in all."""


@dataclass(frozen=True, slots=True)
class Situation:
    """The machine at the moment of the question."""

    now: float
    speeds: Speeds
    running: int
    """Segments that decode or prefill now."""
    step_s: float
    """What a step takes at present."""
    waiting: int
    """Segments that wait for a place which only idle KV blocks."""
    wanted: int
    """Tokens of segments that could run if cells were free: C_batch of InferCept and Astraea."""
    cells_used: int
    cells_total: int
    taxed: bool
    """One pool of cells for all: places are cells, and idle ones slow the running segments."""
    can_park: bool
    ram_free: int
    """Bytes that the RAM tier can take, what it would give up for them included."""
    disk_free: int
    """Bytes that the disk tier can take, what it would give up for them included."""
    cells_level: Level = "normal"
    ram_level: Level = "normal"

    @property
    def scarce(self) -> bool:
        """Whether RAM is short."""
        return self.ram_level in ("high", "critical")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with an idle state now."""

    move: Move
    until: float | None
    """Kept: when to ask again, because keeping is not expected to pay after that; None: when somebody
    needs the place or the pressure changes."""
    prefetch_at: float | None
    """Moved: when to bring it back; None: when its job returns."""
    reason: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """The state that gives way, and where it goes."""

    holder: int
    move: Move
    reason: str


class Retention(ABC):
    """Decides about idle KV. Policies keep no state: the same question has the same answer."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """In a few words, for lists."""
    shares: ClassVar[bool] = True
    """Whether a prefix computed for one job serves another."""
    copies_ahead: ClassVar[bool] = False
    """Whether idle states are copied out while nothing runs, so that leaving later costs no time."""

    def idle(self, kv: IdleKv, at: Situation) -> Verdict:
        """Asked when a wait begins, when `until` has passed and when the pressure changes."""
        if kv.pinned:
            return keep("pinned")
        return self._idle(kv, at)

    def gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction | None:
        """Asked when somebody needs a place now; None when there is no candidate that is not pinned."""
        movable = [kv for kv in candidates if not kv.pinned]
        return self._gives_way(movable, at) if movable else None

    def prefetch(self, kv: ParkedKv, at: Situation) -> float | None:
        """When to bring parked KV back if there is room then, `now` at the earliest; None: on demand."""
        return None

    @abstractmethod
    def _idle(self, kv: IdleKv, at: Situation) -> Verdict:
        """`idle` of a state that is not pinned."""

    @abstractmethod
    def _gives_way(self, candidates: Sequence[IdleKv], at: Situation) -> Eviction:
        """`gives_way` of at least one candidate, none of them pinned."""


def keep(reason: str, until: float | None = None) -> Verdict:
    """It stays where it is."""
    return Verdict(Move.KEEP, until, None, reason)


def longest_unused(candidates: Sequence[IdleKv]) -> IdleKv:
    """The first of them at equal times."""
    return min(candidates, key=lambda kv: kv.last_used)


def to_ram(kv: IdleKv, at: Situation) -> Move:
    """RAM, or DROP where it cannot go there."""
    fits = at.can_park and kv.new_tokens * at.speeds.kv_token_bytes <= at.ram_free
    return Move.RAM if fits or not kv.new_tokens else Move.DROP


def whose(kv: IdleKv) -> str:
    """`its job waits for a tool`, for reasons."""
    if not kv.useful:
        return "its job is finished"
    return "its job waits for a slot" if kv.wait is None else "its job waits for a tool"


def duration(seconds: float) -> str:
    """`0.4 ms`, `60 ms`, `1.3 s`, `28 s`, for reasons."""
    if seconds >= 1.0:
        return f"{seconds:.0f} s" if seconds >= 10.0 else f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 or not seconds else f"{1000 * seconds:.1g} ms"
