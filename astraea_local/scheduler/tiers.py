"""Where the KV of a job that waits for its tool goes, policy by policy, for the simulator's comparison.

The policies of the literature as published, and `adaptive`. All are asked twice: when a wait begins, and when
a running segment needs the place of an idle one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import Fate
from astraea_local.scheduler.speeds import Speeds


@dataclass(frozen=True, slots=True)
class Idle:
    """The resident KV of a job that waits, for its tool or for a slot."""

    job: str
    tokens: int
    since: float
    """When it became idle."""
    wait: Distribution | None
    """Predicted length of its tool wait; None when it waits for a slot."""
    kept_until: float = 0.0
    created: float = 0.0
    """When its job came."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How scarce cells are."""

    used: int
    total: int
    wanted: int
    """Tokens of segments that could run if cells were free: C_batch of InferCept and Astraea."""
    speeds: Speeds


class Tiering(ABC):
    """Decides about idle KV."""

    name: ClassVar[str]
    shares: ClassVar[bool] = True
    """Whether a prefix computed for one job serves another."""

    def begins(self, idle: Idle, pressure: Pressure) -> Fate | None:
        """What becomes of the KV when a tool wait begins; None = it stays."""
        del idle, pressure
        return None

    @abstractmethod
    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        """Which of these, longest unused first, gives way, and where it goes."""


class DropAlways(Tiering):
    """vLLM without prefix caching: a tool call ends the request, its return is a new one."""

    name: ClassVar[str] = "drop"
    shares: ClassVar[bool] = False

    def begins(self, idle: Idle, pressure: Pressure) -> Fate | None:
        return Fate.DROP

    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        return idle[0], Fate.DROP


class KeepUntilNeeded(Tiering):
    """Prefix caching on the device only: the longest unused is overwritten."""

    name: ClassVar[str] = "keep"

    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        return idle[0], Fate.DROP


class Lru(Tiering):
    """llama-server with its RAM cache: the longest unused goes to host memory."""

    name: ClassVar[str] = "lru"

    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        return idle[0], Fate.PARK


class Paper(Tiering):
    """Astraea section 4.4: keep below the watermark, above it the least of equations 5 to 7."""

    name: ClassVar[str] = "paper"

    def __init__(self, watermark: float) -> None:
        self._watermark = watermark

    def begins(self, idle: Idle, pressure: Pressure) -> Fate | None:
        if pressure.used < self._watermark * pressure.total or idle.wait is None:
            return None
        keep = idle.wait.mean * idle.tokens
        drop = pressure.speeds.prefill(idle.tokens, 0) * pressure.wanted
        swap = 2 * pressure.speeds.save(idle.tokens) * pressure.wanted
        if keep <= min(drop, swap):
            return None
        return Fate.PARK if swap < drop else Fate.DROP

    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        first = max(idle, key=lambda i: (i.wait.mean if i.wait else 0.0) * i.tokens)
        swap = 2 * pressure.speeds.save(first.tokens) < pressure.speeds.prefill(first.tokens, 0)
        return first, Fate.PARK if swap else Fate.DROP


class Ttl(Tiering):
    """Continuum: held for a time-to-live, then free to be overwritten; the latest job gives way first."""

    name: ClassVar[str] = "ttl"

    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        expired = [i for i in idle if i.kept_until < now and i.wait is not None]
        return (expired[0] if expired else max(idle, key=lambda i: i.created)), Fate.DROP


class Adaptive(Tiering):
    """Kept as long as nobody needs the place; then goes who is expected back last for its size.

    Losing a state costs its job and everyone else the way back; holding it costs cells times the expected
    rest of the wait, given how long it has lasted.
    """

    name: ClassVar[str] = "adaptive"

    def gives_way(self, idle: Sequence[Idle], now: float, pressure: Pressure) -> tuple[Idle, Fate]:
        speeds = pressure.speeds

        def rent(i: Idle) -> float:
            rest = i.wait.remaining(now - i.since) if i.wait is not None else 0.0
            lost = min(speeds.save(i.tokens) + speeds.restore(i.tokens), speeds.prefill(i.tokens, 0))
            return rest * i.tokens / max(lost, 1e-9)

        first = max(idle, key=rent)
        moved = speeds.save(first.tokens) + speeds.restore(first.tokens)
        return first, Fate.PARK if moved < speeds.prefill(first.tokens, 0) else Fate.DROP
