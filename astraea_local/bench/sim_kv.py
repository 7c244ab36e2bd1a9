"""The simulated engine's KV: which job's state is resident, parked or gone, and what moving it costs."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from astraea_local.bench.machine import Machine
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import IdleKv, Level, Move, Retention, Situation

# Only the longest unused are looked at when one has to give way.
_CANDIDATES = 64
# Host memory and disk have no limit here.
_ENDLESS = 1 << 62
# As the defaults of `[memory]` in a profile.
_LEVELS: tuple[tuple[float, Level], ...] = ((0.95, "critical"), (0.9, "high"), (0.8, "normal"), (0.0, "low"))


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
    ask_at: float = math.inf
    """When the retention policy wants to be asked again."""

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
    retention: Retention
    queue: Callable[[], tuple[int, int]]
    """How many segments wait for a slot, and their tokens."""
    on_loss: Callable[[State], None]
    """Told when an idle state left its cells."""
    used: int = 0
    """Resident tokens."""
    idle: dict[str, State] = field(default_factory=dict)
    """Resident states that no segment uses, longest unused first."""
    running: int = 0
    stats: KvStats = field(default_factory=KvStats)
    _asks: list[tuple[float, str]] = field(default_factory=list)

    @property
    def next_ask(self) -> float:
        """When `ask` is to be called; infinity when there is no reason to."""
        while self._asks and not self._is_due(*self._asks[0]):
            heapq.heappop(self._asks)
        return self._asks[0][0] if self._asks else math.inf

    @property
    def tax_s(self) -> float:
        """What idle resident tokens add to each decode step."""
        per_token = self.machine.speeds.idle_token_s if self._pooled else 0.0
        return per_token * sum(s.resident for s in self.idle.values()) if per_token else 0.0

    def occupy(self, state: State, tokens: int, now: float) -> float:
        """Makes the state's first `tokens` resident and running; returns seconds of moving."""
        self.idle.pop(state.job, None)
        state.ask_at = math.inf
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
        self.used += tokens
        state.resident += tokens

    def release(self, state: State, now: float, wait: Distribution | None, kept_until: float) -> float:
        """The segment left its slot; with `wait`, its job waits for a tool. Returns seconds of moving."""
        state.running = False
        self.running -= 1
        state.since, state.wait, state.kept_until = now, wait, kept_until
        self.idle[state.job] = state
        if wait is None:
            return 0.0
        return self._ask(state, now)

    def ask(self, now: float) -> float:
        """Asks about the states whose time has come; returns seconds of moving."""
        took = 0.0
        while self.next_ask <= now:
            _at, job = heapq.heappop(self._asks)
            took += self._ask(self.idle[job], now)
        return took

    def end(self, state: State) -> None:
        """The job is over: its cells are free."""
        self.idle.pop(state.job, None)
        self._set(state, 0)
        state.parked = 0

    @property
    def _pooled(self) -> bool:
        return self.machine.sequences > self.machine.slots

    def _is_due(self, at: float, job: str) -> bool:
        return job in self.idle and self.idle[job].ask_at == at

    def _ask(self, state: State, now: float) -> float:
        verdict = self.retention.idle(_idle(0, state), self._situation(now))
        took = 0.0
        if verdict.move is not Move.KEEP:
            took = self._evict(state, verdict.move)
        elif verdict.until is not None:
            state.ask_at = verdict.until
            heapq.heappush(self._asks, (verdict.until, state.job))
        self.stats.moved_s += took
        return took

    def _set(self, state: State, tokens: int) -> None:
        self.used += tokens - state.resident
        state.resident = tokens

    def _make_room(self, tokens: int, places: int, now: float) -> float:
        machine = self.machine
        took = 0.0
        while self.idle and (
            self.used + tokens > machine.cells or self.running + len(self.idle) + places > machine.sequences
        ):
            states = list(islice(self.idle.values(), _CANDIDATES))
            candidates = [_idle(i, state) for i, state in enumerate(states)]
            choice = self.retention.gives_way(candidates, self._situation(now))
            if choice is None:
                break
            took += self._evict(states[choice.holder], choice.move)
        return took

    def _evict(self, state: State, move: Move) -> float:
        del self.idle[state.job]
        state.ask_at = math.inf
        took = 0.0
        if move is not Move.DROP:
            state.parked = state.resident
            took = self.machine.speeds.save(state.resident)
            self.stats.parks += 1
        else:
            self.stats.drops += 1
        self._set(state, 0)
        self.on_loss(state)
        return took

    def _situation(self, now: float) -> Situation:
        machine, (queued, tokens) = self.machine, self.queue()
        free = machine.cells - self.used
        full = self.running + len(self.idle) >= machine.sequences
        blocked = queued and (full or free < tokens / queued)
        share = self.used / machine.cells
        return Situation(
            now=now,
            speeds=machine.speeds,
            running=self.running,
            step_s=machine.speeds.decode_step(self.running, self.used) + self.tax_s,
            waiting=min(queued, machine.slots - self.running) if blocked else 0,
            wanted=tokens,
            cells_used=self.used,
            cells_total=machine.cells,
            taxed=self._pooled,
            can_park=True,
            ram_free=_ENDLESS,
            disk_free=_ENDLESS,
            cells_level=next(level for least, level in _LEVELS if share >= least),
        )


def _idle(holder: int, state: State) -> IdleKv:
    return IdleKv(
        holder=holder,
        job=state.job,
        tokens=state.resident,
        new_tokens=state.resident,
        since=state.since,
        last_used=state.since,
        wait=state.wait,
        useful=True,
        kept_until=state.kept_until,
        created=state.created,
    )
