"""The simulated engine's KV: which job's state is resident, parked or gone, and what moving it costs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from astraea_local.bench.machine import Machine
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import Fate
from astraea_local.scheduler.tiers import Idle, Pressure, Tiering

# Only the longest unused are looked at when one has to give way.
_CANDIDATES = 64


@dataclass(slots=True)
class State:
    """The KV of one job, tokens."""

    job: str
    created: float
    resident: int = 0
    parked: int = 0
    running: bool = False
    since: float = 0.0
    wait: Distribution | None = None
    kept_until: float = 0.0

    @property
    def held(self) -> int:
        """Tokens that need no prefill."""
        return max(self.resident, self.parked)


@dataclass(slots=True)
class KvStats:
    """Counts over a run."""

    parks: int = 0
    restores: int = 0
    drops: int = 0
    moved_s: float = 0.0


@dataclass(slots=True)
class SimKv:
    """KV states of all jobs on one machine. What takes time says how long; the caller lets it pass."""

    machine: Machine
    tiering: Tiering
    wanted: Callable[[], int]
    """Tokens of the segments that wait for a slot."""
    on_loss: Callable[[State], None]
    """Told when an idle state left its cells."""
    used: int = 0
    """Resident tokens."""
    idle: dict[str, State] = field(default_factory=dict)
    """Resident states that no segment uses, longest unused first."""
    running: int = 0
    stats: KvStats = field(default_factory=KvStats)

    def occupy(self, state: State, tokens: int, now: float) -> float:
        """Makes the state's first `tokens` resident and running; returns seconds of moving."""
        self.idle.pop(state.job, None)
        # Beside what it still has, a prefix may have become known that others share with it.
        took = self._make_room(tokens - state.resident, 0 if state.resident else 1, now)
        if state.parked and tokens:
            took += self.machine.speeds.restore(tokens)
            self.stats.restores += 1
        state.running = True
        self.running += 1
        state.parked = 0
        self._set(state, tokens)
        self.stats.moved_s += took
        return took

    def room_for(self, tokens: int, now: float) -> tuple[bool, float]:
        """Whether `tokens` more fit, idle states giving way, and the seconds that moving took."""
        took = self._make_room(tokens, 0, now)
        self.stats.moved_s += took
        return self.used + tokens <= self.machine.cells, took

    def grow(self, state: State, tokens: int) -> None:
        """Adds computed tokens."""
        self._set(state, state.resident + tokens)

    def release(self, state: State, now: float, wait: Distribution | None, kept_until: float) -> float:
        """The segment left its slot; with `wait`, its job waits for a tool. Returns seconds of moving."""
        state.running = False
        self.running -= 1
        state.since, state.wait, state.kept_until = now, wait, kept_until
        self.idle[state.job] = state
        if wait is None:
            return 0.0
        fate = self.tiering.begins(_idle(state), self._pressure())
        took = 0.0 if fate is None else self._evict(state, fate)
        self.stats.moved_s += took
        return took

    def end(self, state: State) -> None:
        """The job is over: its cells are free."""
        self.idle.pop(state.job, None)
        self._set(state, 0)
        state.parked = 0

    def _set(self, state: State, tokens: int) -> None:
        self.used += tokens - state.resident
        state.resident = tokens

    def _make_room(self, tokens: int, places: int, now: float) -> float:
        machine = self.machine
        took = 0.0
        while self.idle and (
            self.used + tokens > machine.cells or self.running + len(self.idle) + places > machine.sequences
        ):
            candidates = [_idle(s) for s in islice(self.idle.values(), _CANDIDATES)]
            choice, fate = self.tiering.gives_way(candidates, now, self._pressure())
            took += self._evict(self.idle[choice.job], fate)
        return took

    def _evict(self, state: State, fate: Fate) -> float:
        del self.idle[state.job]
        took = 0.0
        if fate is Fate.PARK:
            state.parked = state.resident
            took = self.machine.speeds.save(state.resident)
            self.stats.parks += 1
        else:
            self.stats.drops += 1
        self._set(state, 0)
        self.on_loss(state)
        return took

    def _pressure(self) -> Pressure:
        return Pressure(self.used, self.machine.cells, self.wanted(), self.machine.speeds)


def _idle(state: State) -> Idle:
    return Idle(state.job, state.resident, state.since, state.wait, state.kept_until, state.created)
