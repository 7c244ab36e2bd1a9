"""Finds the longest known prefix of a prompt, and a sequence to run it in.

Everything that holds KV counts: the job's own sequence, idle or running sequences of others, and parked
states. Who gives way is decided by the retention policy and done here; long moves are done in slices, one
or more in each step, so that those who run are not held up.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from astraea_local.engine.binding import Tokens
from astraea_local.engine.kv.fetches import Fetches, Key
from astraea_local.engine.kv.parts import Part
from astraea_local.engine.kv.store import ParkedStore, Parking
from astraea_local.engine.kv.transfer import Transfer
from astraea_local.engine.restores import Restores, Restoring, cells_for
from astraea_local.engine.slots import Sequence, SequenceTable
from astraea_local.engine.stall import Stall
from astraea_local.scheduler.retention import IdleKv, Move, Retention, Situation
from astraea_local.scheduler.speeds import Speeds

# Below this, moving KV about is not worth the trouble of doing it.
_MIN_REUSE = 16


class Facts(Protocol):
    """What the placer has to be told about jobs and the machine."""

    def describe(self, sequence: Sequence) -> IdleKv:
        """An idle sequence, as the retention policy sees it."""

    def situation(self) -> Situation:
        """The machine now."""

    def speeds(self) -> Speeds:
        """Measured speeds."""

    def is_useful(self, job: str | None) -> bool:
        """Whether the job is expected to come back."""

    def is_running(self, job: str) -> bool:
        """Whether a segment of the job has a sequence."""

    def is_asking(self, job: str) -> bool:
        """Whether a segment of the job is queued or running."""


class Delay(enum.Enum):
    """Why a segment was not placed."""

    FULL = enum.auto()
    """Every sequence is running or pinned."""
    MOVING = enum.auto()
    """A move for it is under way: ask again in the next step."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a prefix is."""

    length: int
    holder: Sequence | Part | None = None


class Placer:
    """Places segments into the sequences of one context."""

    def __init__(
        self,
        table: SequenceTable,
        store: ParkedStore,
        transfer: Transfer,
        *,
        policy: Retention,
        facts: Facts,
        min_tokens: int,
        note: Callable[[str], None],
    ) -> None:
        """`note` gets a line for the event log."""
        self._table = table
        self._store = store
        self.transfer = transfer
        self.policy = policy
        self._facts = facts
        self._min_tokens = min_tokens
        self._note = note
        self._fetches = Fetches(store)
        self._restores = Restores(table, store, transfer, facts.speeds)
        self._leaving: Sequence | None = None
        """An idle sequence whose state is being copied because its place is needed."""

    # -- finding -----------------------------------------------------------------------------------

    def find(self, prompt: Tokens, job: str) -> Source:
        """The holder of the longest usable prefix; at equal length the cheapest one to take it from."""
        best = Source(0)
        best_cost = 9
        for sequence in self._table:
            if sequence.reserved:
                continue
            length = self._table.usable_prefix(sequence, prompt)
            cost = (0 if sequence.job == job else 1) if sequence.segment is None else 2
            if length > best.length or (length == best.length > 0 and cost < best_cost):
                best, best_cost = Source(length, sequence), cost
        part, length = self._store.find(prompt[:-1])
        if part is not None and length > best.length and self._pays(part, length, best.length):
            best = Source(length, part)
        return best if best.length >= _MIN_REUSE else Source(0)

    def restore_s(self, source: Source) -> float:
        """Predicted seconds to bring the source's KV into a sequence."""
        if not isinstance(source.holder, Part):
            return 0.0
        return self._moving_s(source.holder, source.length)

    def _pays(self, part: Part, length: int, otherwise: int) -> bool:
        """Whether restoring is quicker than computing what `otherwise` would be missing."""
        again = self._facts.speeds().prefill(length - otherwise, otherwise)
        return self._moving_s(part, length) < again

    def _moving_s(self, part: Part, length: int) -> float:
        speeds = self._facts.speeds()
        missing = self._store.missing_bytes(part, length) / speeds.disk_read_bytes_s
        return missing + self._store.bytes_of(part, length) / speeds.restore_bytes_s

    # -- placing -----------------------------------------------------------------------------------

    def place(
        self, segment: int, prompt: Tokens, job: str, now: float, stall: Stall
    ) -> tuple[Sequence, int] | Delay:
        """A sequence holding the longest known prefix of `prompt`, and the prefix's length."""
        if job in self._restores:
            self._resume(job, Stall(None))
        placed = self._resume(segment, stall) if segment in self._restores else None
        if placed is None:
            source = self.find(prompt, job)
            match source.holder:
                case Sequence():
                    placed = self._from_sequence(source.holder, source.length, job, stall)
                case Part():
                    placed = self._from_part(segment, source.holder, source.length, stall)
                case None:
                    empty = self.vacate(stall)
                    placed = empty if isinstance(empty, Delay) else (empty, 0)
        if not isinstance(placed, Delay):
            placed[0].job, placed[0].last_used = job, now
        return placed

    def bring_back(self, job: str, part: Part, length: int, stall: Stall) -> Sequence | Delay:
        """Restores a job's state before it asks for it; call again while it is `MOVING`."""
        placed = self._resume(job, stall) if job in self._restores else None
        placed = placed or self._from_part(job, part, length, stall)
        if isinstance(placed, Delay):
            return placed
        placed[0].job = job
        return placed[0]

    @property
    def brought_back(self) -> list[str]:
        """Jobs whose state is on its way back before they ask for it."""
        return self._restores.jobs

    def shift(self, sequence: Sequence, stall: Stall) -> bool:
        """Moves a state to the lowest free cells of the pool; on failure the sequence is empty."""
        with stall.timed():
            moved = self.transfer.shift(sequence.id, len(sequence.tokens))
        if not moved:
            self._table.clear(sequence)
        return moved

    def give_up(self, key: Key) -> None:
        """The segment is gone: what was being restored for it is left where it is."""
        self._restores.give_up(key)
        self._fetches.end(key)

    def give_up_all(self) -> None:
        """Leaves every state that is being restored where it is."""
        self._restores.give_up_all()
        self._fetches.end_all()

    def give_up_unasked(self) -> None:
        """Once in each step: what is read for one who did not ask in the last step may leave RAM again."""
        self._fetches.end_unasked()

    def _from_sequence(
        self, source: Sequence, length: int, job: str, stall: Stall
    ) -> tuple[Sequence, int] | Delay:
        tail = len(source.tokens) - length
        idle = source.segment is None
        mine = source.job == job or tail == 0 or not self._facts.is_useful(source.job)
        if idle and (mine or self.covers(source)):
            self._table.trim(source, length)
            return source, len(source.tokens)
        target = self.vacate(stall, keep=source)
        if isinstance(target, Sequence):
            self._table.copy(source, target, length)
            return target, len(target.tokens)
        if not idle or target is Delay.MOVING:
            return target
        # The only idle sequence is the source itself: its owner's tail goes to RAM first.
        if self.park(source, stall) is Parking.MORE:
            return Delay.MOVING
        self._table.trim(source, length)
        return source, len(source.tokens)

    def _from_part(self, key: Key, part: Part, length: int, stall: Stall) -> tuple[Sequence, int] | Delay:
        pieces = self._fetches.fetch(key, part, length)
        if pieces is None:
            return Delay.MOVING
        target = self.vacate(stall)
        if isinstance(target, Delay):
            return target
        if not pieces:
            return target, 0
        if not self.make_room(cells_for(pieces), stall, keep=target):
            if self._leaving is not None:
                return Delay.MOVING
            # Computing it would take as many cells: it waits for those who run to end.
            running = any(s.segment is not None for s in self._table)
            return Delay.FULL if running else (target, 0)
        self._restores.begin(key, target, pieces)
        self._fetches.end(key)
        return self._resume(key, stall) or (target, 0)

    def _resume(self, key: Key, stall: Stall) -> tuple[Sequence, int] | Delay | None:
        """Goes on with a restore; None when it failed, with its sequence empty."""
        restore = self._restores[key]
        match self._restores.resume(key, stall):
            case Restoring.DONE:
                return restore.target, restore.length
            case Restoring.MORE:
                return Delay.MOVING
            case Restoring.FAILED:
                return None

    # -- making room -------------------------------------------------------------------------------

    def vacate(self, stall: Stall, *, keep: Sequence | None = None) -> Sequence | Delay:
        """An empty sequence; an idle one is evicted when there is none. `keep` is spared."""
        free = self._table.free()
        return free if free is not None else self._evict(stall, keep)

    def make_room(
        self, cells: int, stall: Stall, *, keep: Sequence | None = None, pinned: bool = False
    ) -> bool:
        """Frees cells of a unified pool by evicting idle sequences, until `cells` are free.

        With `pinned`, those that are pinned give way too, after the others.
        """
        while self._table.unified and self._table.cells_free < cells:
            if isinstance(self._evict(stall, keep, pinned=pinned), Delay):
                return False
        return True

    def covers(self, sequence: Sequence) -> bool:
        """Whether the same tokens are parked, or in another sequence."""
        tokens = sequence.tokens.view()
        return self._store.covered(tokens) == len(tokens) or any(
            other is not sequence
            and len(other.tokens) > len(tokens)
            and self._table.usable_prefix(other, _longer(tokens)) == len(tokens)
            for other in self._table
        )

    def park(self, sequence: Sequence, stall: Stall, *, ahead: bool = False) -> Parking:
        """Copies a sequence's state to RAM, as far as this step's time allows, and leaves the sequence.

        `ahead`: its place is not needed yet.
        """
        speeds = self._facts.speeds()
        token_s = speeds.kv_token_bytes / speeds.save_bytes_s
        while True:
            tokens = sequence.tokens.view()
            most = stall.tokens(token_s)
            if stall.limited and not self._has_memory(sequence, tokens, most, stall):
                return Parking.MORE
            count = len(tokens) if most is None or not self.transfer.sliced else min(most, len(tokens))
            if not stall.allows(token_s * count):
                return Parking.MORE
            with stall.timed():
                done = self._store.park(
                    self.transfer, sequence.id, tokens, sequence.job, most=most, ahead=ahead
                )
            if done is not Parking.MORE:
                return done

    def _has_memory(self, sequence: Sequence, tokens: Tokens, most: int | None, stall: Stall) -> bool:
        """Whether the next stretch can be copied into memory that is there; else some of it is prepared.

        Memory that was never used costs many times what the copy does: the system has to find its pages.
        """
        start = self._store.covered(tokens)
        end = len(tokens)
        if most is not None and self.transfer.sliced:
            end = min(end, start + most)
        arena = self._store.arena
        size = self.transfer.size_of(sequence.id, start, end) if start < end else 0
        if not size or not arena.grows(size):
            return True
        took = 0.0
        while stall.allows(took) and arena.grows(size):
            before = stall.spent
            with stall.timed():
                arena.grow(size)
            took = stall.spent - before
        return not arena.grows(size)

    def move_out(self, sequence: Sequence, move: Move, stall: Stall) -> bool:
        """Takes an idle state out of its sequence; False when the copying is not finished yet."""
        short = len(sequence.tokens) < self._min_tokens
        if move is not Move.DROP and not short and not self.covers(sequence):
            parked = self.park(sequence, stall)
            if parked is Parking.MORE:
                return False
            if parked is Parking.FAILED:
                count = len(sequence.tokens)
                self._note(f"no room to park {count} tokens of {sequence.job}: dropped")
        self._table.clear(sequence)
        return True

    def _evict(self, stall: Stall, keep: Sequence | None, *, pinned: bool = False) -> Sequence | Delay:
        victim, self._leaving = self._leaving, None
        move = Move.RAM
        # Its place may have been emptied meanwhile, and be in use for something else.
        if victim is None or victim is keep or victim not in self._table.idle():
            idle = [self._facts.describe(s) for s in self._table.idle() if s is not keep]
            choice = self.policy.gives_way(idle, self._facts.situation())
            if choice is not None:
                victim, move = self._table.sequences[choice.holder], choice.move
            else:
                victim = self._last_resort(keep, pinned=pinned)
                if victim is None:
                    return Delay.FULL
        if not self.move_out(victim, move, stall):
            self._leaving = victim
            return Delay.MOVING
        return victim

    def _last_resort(self, keep: Sequence | None, *, pinned: bool) -> Sequence | None:
        """The pinned state used longest ago, if pins may be broken: also where nobody could run for them."""
        idle = [s for s in self._table.idle() if s is not keep]
        if not pinned and any(s.segment is not None or s.reserved for s in self._table):
            return None
        return min(idle, key=lambda s: s.last_used, default=None)


def _longer(tokens: Tokens) -> Tokens:
    """The tokens and one more, so that all of them count as a prefix."""
    return np.append(tokens, np.int32(-1))
