"""Finds the longest known prefix of a prompt, and a sequence to run it in.

Everything that holds KV counts: the job's own sequence, idle or running sequences of others, and parked
states. What has to give way is decided by `scheduler.retention` and done here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.engine.binding import Context, Tokens
from astraea_local.engine.kvstore import RamStore, Snapshot
from astraea_local.engine.slots import Sequence, SequenceTable, common_prefix
from astraea_local.scheduler.retention import Fate, IdleKv, evict

# Below this, moving KV about is not worth the trouble of doing it.
_MIN_REUSE = 16


@dataclass(frozen=True, slots=True)
class Source:
    """Where a prefix is."""

    length: int
    holder: Sequence | Snapshot | None = None


class Placer:
    """Places segments into sequences of one context."""

    def __init__(
        self,
        context: Context,
        table: SequenceTable,
        store: RamStore,
        *,
        min_tokens: int,
        is_useful: Callable[[str | None], bool],
        is_pinned: Callable[[str | None], bool] = lambda _job: False,
        note: Callable[[str], None],
    ) -> None:
        """`is_useful` says whether a job is expected back, `is_pinned` whether its KV must stay in its slot;
        `note` gets a line for the event log."""
        self._context = context
        self._table = table
        self._store = store
        self._min_tokens = min_tokens
        self._is_useful = is_useful
        self._is_pinned = is_pinned
        self._note = note

    def find(self, prompt: Tokens, job: str) -> Source:
        """The holder of the longest usable prefix; at equal length the cheapest one to take it from."""
        best = Source(0)
        best_cost = 9
        for sequence in self._table:
            length = self._table.usable_prefix(sequence, prompt)
            cost = (0 if sequence.job == job else 1) if sequence.segment is None else 2
            if length > best.length or (length == best.length > 0 and cost < best_cost):
                best, best_cost = Source(length, sequence), cost
        for snapshot in self._store.snapshots:
            length = self._usable(snapshot, prompt)
            if length > best.length:
                best, best_cost = Source(length, snapshot), 3
        return best if best.length >= _MIN_REUSE else Source(0)

    def place(self, prompt: Tokens, job: str, now: float) -> tuple[Sequence, int] | None:
        """A sequence holding the longest known prefix of `prompt`, and the prefix's length.

        None when every sequence is running.
        """
        source = self.find(prompt, job)
        holder = source.holder
        if isinstance(holder, Sequence):
            placed = self._from_sequence(holder, source.length, job, now)
        elif isinstance(holder, Snapshot):
            placed = self._from_snapshot(holder, source.length, job, now)
        else:
            placed = self.vacate(now), 0
        sequence, length = placed
        if sequence is None:
            return None
        sequence.job, sequence.last_used = job, now
        return sequence, length

    def vacate(self, now: float, *, keep: Sequence | None = None) -> Sequence | None:
        """An empty sequence; an idle one is evicted when there is none. `keep` is spared."""
        free = self._table.free()
        return free if free is not None else self._evict(now, keep)

    def make_room(self, cells: int, now: float, *, keep: Sequence | None = None) -> bool:
        """Frees cells of a unified pool by evicting idle sequences, until `cells` are free."""
        while self._table.unified and self._table.cells_free < cells:
            if self._evict(now, keep) is None:
                return False
        return True

    def park(self, sequence: Sequence, now: float) -> bool:
        """Copies a sequence's state to RAM and leaves the sequence as it is."""
        return self._store.park(
            self._context,
            sequence.id,
            sequence.tokens.view(),
            sequence.job,
            now,
            useful=self._is_useful(sequence.job),
        )

    def _from_sequence(
        self, source: Sequence, length: int, job: str, now: float
    ) -> tuple[Sequence | None, int]:
        tail = len(source.tokens) - length
        idle = source.segment is None
        if idle and (source.job == job or tail == 0 or not self._is_useful(source.job)):
            self._table.trim(source, length)
            return source, length
        target = self.vacate(now, keep=source)
        if target is not None:
            self._table.copy(source, target, length)
            return target, len(target.tokens)
        if not idle:
            return None, 0
        # The only idle sequence is the source itself: its owner's tail goes to RAM first.
        self.park(source, now)
        self._table.trim(source, length)
        return source, length

    def _from_snapshot(
        self, snapshot: Snapshot, length: int, job: str, now: float
    ) -> tuple[Sequence | None, int]:
        target = self.vacate(now)
        if target is None:
            return None, 0
        if snapshot not in self._store.snapshots or not self.make_room(
            len(snapshot.tokens), now, keep=target
        ):
            return target, 0
        if not self._store.restore(self._context, snapshot, target.id, now):
            self._note(
                f"restoring {len(snapshot.tokens)} tokens of {snapshot.job} failed: they are recomputed"
            )
            return target, 0
        self._table.adopt(target, snapshot.tokens)
        if snapshot.job == job or length == len(snapshot.tokens):
            self._store.drop(snapshot)
        self._table.trim(target, length)
        return target, len(target.tokens)

    def _usable(self, snapshot: Snapshot, prompt: Tokens) -> int:
        common = common_prefix(snapshot.tokens, prompt)
        limit = len(prompt) - 1
        if not self._table.trimmable:
            return common if common == len(snapshot.tokens) <= limit else 0
        return min(common, limit)

    def _evict(self, now: float, keep: Sequence | None) -> Sequence | None:
        states = [
            IdleKv(
                holder=s.id,
                tokens=len(s.tokens),
                last_used=s.last_used,
                useful=self._is_useful(s.job),
                covered=self._covered(s),
            )
            for s in self._table.idle()
            if s is not keep and not self._is_pinned(s.job)
        ]
        choice = evict(states, min_tokens=self._min_tokens, can_park=self._store.budget > 0)
        if choice is None:
            return None
        victim = self._table.sequences[choice.holder]
        if choice.fate is Fate.PARK and not self.park(victim, now):
            self._note(f"no room in RAM for {len(victim.tokens)} tokens of {victim.job}: dropped")
        self._table.clear(victim)
        return victim

    def _covered(self, sequence: Sequence) -> bool:
        tokens = sequence.tokens.view()
        return self._store.covers(tokens) or any(
            other is not sequence
            and len(other.tokens) > len(tokens)
            and common_prefix(other.tokens.view(), tokens) == len(tokens)
            for other in self._table
        )
