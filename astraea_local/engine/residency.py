"""Where every job's KV is: in a sequence, in RAM, on disk; and what becomes of it while its job waits.

The retention policy decides (`scheduler/retention`); this module asks it at the right moments and carries
the answers out: when a job begins to wait, when keeping stops paying, when the pressure changes, and when
somebody needs the place.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.engine.binding import Context, ModelClass, Tokens
from astraea_local.engine.compaction import Compactor
from astraea_local.engine.kv.parts import Part
from astraea_local.engine.kv.store import ParkedStore, Parking
from astraea_local.engine.kv.tiers import Tiers
from astraea_local.engine.kv.transfer import Transfer
from astraea_local.engine.part_value import part_value
from astraea_local.engine.placement import Delay, Facts, Placer
from astraea_local.engine.slots import Sequence, SequenceTable
from astraea_local.engine.stall import Stall
from astraea_local.frame import PressureLevel
from astraea_local.profile import RetentionSettings
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import Move, ParkedKv, Retention, Verdict

# A decision is not taken again sooner than this.
_SOONEST_S = 0.02
# While something runs, the disk's turn comes so often.
_WRITE_BEHIND_S = 0.02
# While RAM is scarce, so much of what is parked in it is given up this often.
_RELIEVE_S = 1.0
_RELIEVED = 1 / 8
# When there is no room to bring a state back, it is tried again after so long.
_LATER_S = 0.5


@dataclass(slots=True)
class Stay:
    """An idle state in its sequence, and what was decided about it."""

    sequence: Sequence
    job: str | None
    since: float
    wait: Distribution | None
    """Predicted length of its job's tool wait; None when it does not wait for one."""
    verdict: Verdict | None = None
    ask_at: float = 0.0


@dataclass(slots=True)
class Away:
    """A job that waits while its KV is parked."""

    since: float
    wait: Distribution | None
    back_at: float | None
    """When to bring it back; None: when it is asked for."""
    reason: str


@dataclass(slots=True)
class ResidencyStats:
    """Counters since start, beside those of the store."""

    prefetches: int = 0
    compactions: int = 0
    rebuilds: int = 0


@dataclass(frozen=True, slots=True)
class _Live:
    """What exists as long as a context does."""

    context: Context
    table: SequenceTable
    placer: Placer


class Residency:
    """All KV of one engine; owned by its thread. Survives its context."""

    def __init__(
        self,
        settings: RetentionSettings,
        policy: Retention,
        facts: Facts,
        *,
        model_class: ModelClass,
        by_rows: bool,
        tiers: Tiers,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`note` gets a line for the event log."""
        self.settings = settings
        self.policy = policy
        self.stats = ResidencyStats()
        self.stays: dict[int, Stay] = {}
        """Idle states by sequence id."""
        self.away: dict[str, Away] = {}
        """Waiting jobs whose KV is parked."""
        self.pinned: set[str] = set()
        self._facts = facts
        self._model_class = model_class
        self._allocate = tiers.allocate
        self._note = note
        self._clock = clock
        self.store = ParkedStore(
            tiers.arena,
            by_rows=by_rows,
            value=lambda part: part_value(part, facts, clock()),
            note=note,
            disk=tiers.disk,
            clock=clock,
        )
        self._compactor = Compactor(facts)
        self._written_at = -math.inf
        self._ram_is: PressureLevel = "normal"
        self._relieved_at = -math.inf
        self._uncopyable: set[int] = set()
        """Sequences that could not be copied when it was tried last."""
        self._live: _Live | None = None

    # -- the context -------------------------------------------------------------------------------

    def attach(self, context: Context) -> None:
        """Takes an empty context into use."""
        unified, sequences = context.params.unified, context.params.n_seq
        # The last sequence of a pool is the one through which stretches of others are moved.
        spare = sequences - 1 if unified and self.store.by_rows and sequences > 1 else None
        table = SequenceTable(context, sequences if spare is None else spare, self._model_class)
        transfer = Transfer(
            context, self.store.arena, by_rows=self.store.by_rows, spare=spare, allocate=self._allocate
        )
        placer = Placer(
            table,
            self.store,
            transfer,
            policy=self.policy,
            facts=self._facts,
            min_tokens=self.settings.min_tokens,
            note=self._note,
        )
        self._live = _Live(context, table, placer)

    def detach(self) -> None:
        """Parks what is resident, so that the context may be freed. Nothing may be running."""
        placer = self.placer
        placer.give_up_all()
        for sequence in self.table.idle():
            if placer.park(sequence, Stall(None)) is Parking.FAILED and not placer.covers(sequence):
                self._note(f"{len(sequence.tokens)} tokens of {sequence.job} had to be dropped")
        self.stays.clear()
        self._live = None

    @property
    def attached(self) -> bool:
        """Whether there is a context."""
        return self._live is not None

    @property
    def table(self) -> SequenceTable:
        """The sequences of the context."""
        assert self._live is not None
        return self._live.table

    @property
    def placer(self) -> Placer:
        """Places segments in the context."""
        assert self._live is not None
        return self._live.placer

    def reusable(self, context: Tokens, job: str) -> tuple[int, float]:
        """Leading tokens of the context whose KV exists, and the seconds to bring it where it is needed."""
        if self._live is None:
            return 0, 0.0
        source = self.placer.find(context, job)
        return source.length, self.placer.restore_s(source)

    # -- events ------------------------------------------------------------------------------------

    def released(self, sequence: Sequence, wait: Distribution | None) -> None:
        """A segment left the sequence; with `wait`, its job waits for a tool that long."""
        now = self._clock()
        sequence.last_used = now
        self._uncopyable.discard(sequence.id)
        self.stays[sequence.id] = Stay(
            sequence, sequence.job, now, wait, ask_at=math.inf if wait is None else -math.inf
        )
        if sequence.job is not None:
            self.away.pop(sequence.job, None)

    def returned(self, job: str) -> None:
        """The job asks again: its KV is about to be used, and no longer waits for a tool."""
        for stay in self.stays.values():
            if stay.job == job:
                stay.wait, stay.ask_at = None, math.inf
        self.away.pop(job, None)

    def expect(self, job: str, wait: Distribution) -> None:
        """More is known of the job's tool wait."""
        for stay in self.stays.values():
            if stay.job == job:
                stay.wait, stay.ask_at = wait, -math.inf
        if job in self.away:
            self.away[job].wait = wait

    @property
    def unfinished(self) -> bool:
        """Whether moves wait for the next tick."""
        if self.store.disk is not None and self.store.disk.busy:
            return True
        if self._live is None:
            return False
        if self.placer.brought_back:
            return True
        return self._copies_ahead and self._uncopied() is not None

    def pressure_changed(self, ram: PressureLevel) -> None:
        """All decisions are reconsidered; RAM that is scarce is given back bit by bit."""
        self._ram_is = ram
        self.ask_again()

    def ask_again(self) -> None:
        """What decisions depend on has changed: all are reconsidered."""
        for stay in self.stays.values():
            if stay.wait is not None:
                stay.ask_at = -math.inf

    def tick(self, stall: Stall, *, busy: bool) -> None:
        """Does what is due, decisions and moves; in each step, and now and then while nothing runs."""
        now = self._clock()
        # Going through all parts in each step would add up.
        if not busy or now >= self._written_at + _WRITE_BEHIND_S:
            self._written_at = now
            self.store.tick(self.settings.write_behind_s)
        else:
            self.store.poll()
        if self._ram_is_scarce and now >= self._relieved_at + _RELIEVE_S:
            self._relieved_at = now
            size = max(1, int(_RELIEVED * self.store.arena.allocated))
            self.store.relieve_ram(size, lose=self._ram_is == "critical")
        if self._live is None:
            return
        self._forget_ended_stays()
        for stay in [s for s in self.stays.values() if s.ask_at <= now]:
            self._reconsider(stay, stall, now)
        if not busy:
            self._copy_ahead(stall)
        self._give_up_unwanted()
        self.placer.give_up_unasked()
        for job in [j for j, away in self.away.items() if away.back_at is not None and away.back_at <= now]:
            self._prefetch(job, stall)

    def compact(self, steps: int, stall: Stall) -> None:
        """Shortens the span of a pool where that pays; `steps` is the number of those computed so far."""
        if self._compactor.compact(self.table, self.placer, steps, stall):
            self.stats.compactions += 1

    # -- requests of a user ------------------------------------------------------------------------

    def pin(self, job: str, on: bool) -> None:
        """Keeps the job's KV in its sequence, or no longer."""
        (self.pinned.add if on else self.pinned.discard)(job)
        self.ask_again()

    def park_now(self, job: str) -> int:
        """Parks what the job has resident and idle; returns the tokens, 0 where there is no room."""
        tokens = 0
        for sequence in self.table.idle():
            if sequence.job == job and self.placer.park(sequence, Stall(None)) is Parking.DONE:
                tokens = max(tokens, len(sequence.tokens))
                self.table.clear(sequence)
                stay = self.stays.pop(sequence.id, None)
                since, wait = (self._clock(), None) if stay is None else (stay.since, stay.wait)
                # Who asked for the place to be free does not want it filled again at once.
                self.away[job] = Away(since, wait, None, "parked on request")
        return tokens

    def drop(self, job: str) -> int:
        """Forgets the KV of a job that is not running, wherever it is; returns the tokens."""
        tokens = self.store.drop_job(job)
        for sequence in self.table.idle() if self.attached else ():
            if sequence.job == job:
                tokens = max(tokens, len(sequence.tokens))
                self.table.clear(sequence)
        self.away.pop(job, None)
        return tokens

    # -- inside ------------------------------------------------------------------------------------

    def _forget_ended_stays(self) -> None:
        for key, stay in list(self.stays.items()):
            sequence = stay.sequence
            if sequence.segment is not None or sequence.job != stay.job or not len(sequence.tokens):
                del self.stays[key]
                found = None if stay.job is None else self.store.tree.end_of(stay.job)
                if stay.job is not None and found is not None and stay.wait is not None:
                    self._went_away(stay.job, stay, found)

    def _went_away(self, job: str, stay: Stay, found: tuple[Part, int]) -> None:
        """Somebody took the job's place; it may be brought back before its job is."""
        if self._facts.is_running(job):
            return
        on_disk = self.store.missing_bytes(*found) > 0
        parked = ParkedKv(found[1], on_disk, stay.since, stay.wait)
        back_at = self.policy.prefetch(parked, self._facts.situation())
        self.away[job] = Away(stay.since, stay.wait, back_at, "its place was needed")

    def _reconsider(self, stay: Stay, stall: Stall, now: float) -> None:
        sequence = stay.sequence
        verdict = self.policy.idle(self._facts.describe(sequence), self._facts.situation())
        stay.verdict = verdict
        if verdict.move is Move.KEEP:
            stay.ask_at = math.inf if verdict.until is None else max(verdict.until, now + _SOONEST_S)
            return
        job = sequence.job
        if not self.placer.move_out(sequence, verdict.move, stall):
            return  # asked again in the next step, with less to copy
        del self.stays[sequence.id]
        if job is not None and verdict.move is not Move.DROP:
            self.away[job] = Away(stay.since, stay.wait, verdict.prefetch_at, verdict.reason)
            if verdict.move is Move.DISK:
                self.store.sink(job)

    @property
    def _ram_is_scarce(self) -> bool:
        return self._ram_is in ("high", "critical")

    @property
    def _copies_ahead(self) -> bool:
        return self.policy.copies_ahead and not self._ram_is_scarce

    def _copy_ahead(self, stall: Stall) -> None:
        """While nothing runs, copies idle states, so that giving their place away later takes no time."""
        sequence = self._uncopied() if self._copies_ahead else None
        if sequence is not None and self.placer.park(sequence, stall, ahead=True) is Parking.FAILED:
            self._uncopyable.add(sequence.id)

    def _uncopied(self) -> Sequence | None:
        for sequence in self.table.idle():
            short = len(sequence.tokens) < self.settings.min_tokens
            if not (short or sequence.id in self._uncopyable or self.placer.covers(sequence)):
                return sequence
        return None

    def _give_up_unwanted(self) -> None:
        """What was on its way back, and is not to be brought back any more."""
        for job in self.placer.brought_back:
            away = self.away.get(job)
            # Whoever asks takes it over.
            if (away is None or away.back_at is None) and not self._facts.is_asking(job):
                self.placer.give_up(job)

    def _prefetch(self, job: str, stall: Stall) -> None:
        away, found = self.away[job], self.store.tree.end_of(job)
        if found is None:
            away.back_at = None
            return
        part, length = found
        if job not in self.placer.brought_back and not self._has_room_for(length):
            away.back_at = self._clock() + _LATER_S
            return
        placed = self.placer.bring_back(job, part, length, stall)
        if placed is Delay.MOVING:
            return
        del self.away[job]
        if isinstance(placed, Sequence):
            self.stats.prefetches += 1
            self.stays[placed.id] = Stay(placed, job, away.since, away.wait, ask_at=math.inf)

    def _has_room_for(self, tokens: int) -> bool:
        """Whether a state can be brought back without being in anybody's way."""
        table, crowded = self.table, self._facts.situation().waiting > 0
        free = table.free() is not None and (not table.unified or table.cells_free >= 2 * tokens)
        return free and not crowded
