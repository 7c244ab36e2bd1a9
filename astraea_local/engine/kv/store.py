"""Parked KV states: a tree of parts, each in RAM, on disk, or both.

RAM and disk have a byte budget each; when one is full, the parts that are worth least for their size give
way. The files are read and written by other threads (`spill.py`), and nothing here waits for them.
"""

import enum
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from astraea_local.engine.binding import Bytes, Tokens
from astraea_local.engine.kv.arena import BufferArena
from astraea_local.engine.kv.parts import Part, PartTree, Piece, path
from astraea_local.engine.kv.rows import MARGIN
from astraea_local.engine.kv.spill import DiskTier
from astraea_local.engine.kv.transfer import Saved, Transfer
from astraea_local.frame import KvTier

Value = Callable[[Part], float]


class Parking(enum.Enum):
    """What became of an attempt to park."""

    DONE = enum.auto()
    MORE = enum.auto()
    """A stretch was copied, others are left."""
    FAILED = enum.auto()
    """No room, or llama.cpp cannot save this state."""


@dataclass(slots=True)
class StoreStats:
    """Counters since start."""

    parks: int = 0
    restores: int = 0
    failures: int = 0
    """States that could not be saved, read or restored, and are computed again."""
    evictions: int = 0
    prefetches: int = 0
    park_s: float = 0.0
    park_bytes: int = 0
    restore_s: float = 0.0
    restore_bytes: int = 0
    shared_bytes: int = 0
    """Bytes that were not copied because another job's state begins with them."""


class ParkedStore:
    """What is parked and where; owned by the engine's thread."""

    def __init__(
        self,
        arena: BufferArena,
        *,
        by_rows: bool,
        value: Value,
        note: Callable[[str], None],
        disk: DiskTier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`value` is what losing a part would cost, in seconds; `note` gets a line for the event log."""
        self.arena = arena
        self.tree = PartTree() if disk is None else disk.tree
        self.stats = StoreStats()
        self.by_rows = by_rows
        self.disk = disk
        self._value = value
        self._note = note
        self._clock = clock

    # -- looking -----------------------------------------------------------------------------------

    @property
    def ram_bytes(self) -> int:
        """Bytes of states in RAM."""
        return sum(part.size for part in self.tree if part.buffer is not None)

    @property
    def disk_bytes(self) -> int:
        """Bytes of states on disk."""
        return sum(part.size for part in self.tree if part.on_disk)

    @property
    def folder(self) -> Path | None:
        """Where the files are."""
        return None if self.disk is None else self.disk.folder

    @property
    def enabled(self) -> bool:
        """Whether anything can be parked at all."""
        return self.arena.budget > 0

    def find(self, prompt: Tokens) -> tuple[Part | None, int]:
        """The part in which the longest parked prefix of `prompt` ends, and that prefix's length."""
        return self.tree.match(prompt) if self.by_rows else self.tree.whole(prompt)

    def covered(self, tokens: Tokens) -> int:
        """Leading tokens that are parked; with whole states all of them or none."""
        part, length = self.find(tokens)
        return length if self.by_rows or (part is not None and length == len(tokens)) else 0

    def missing_bytes(self, part: Part, length: int) -> int:
        """Bytes of the first `length` tokens through `part` that are on disk only."""
        return sum(piece.part.size for piece in path(part, length) if piece.part.buffer is None)

    def bytes_of(self, part: Part, length: int) -> int:
        """Bytes that restoring the first `length` tokens through `part` would move."""
        return sum(piece.size for piece in path(part, length))

    def tier_of(self, job: str) -> tuple[KvTier, int, int]:
        """`ram`, `disk` or `none`, the tokens, and the bytes of a job's parked state."""
        found = self.tree.end_of(job)
        if found is None:
            return "none", 0, 0
        part, length = found
        tier: KvTier = "disk" if self.missing_bytes(part, length) else "ram"
        return tier, length, self.bytes_of(part, length)

    # -- parking -----------------------------------------------------------------------------------

    def park(
        self,
        transfer: Transfer,
        seq: int,
        tokens: Tokens,
        job: str | None,
        *,
        most: int | None = None,
        ahead: bool = False,
    ) -> Parking:
        """Copies what is not parked yet of a sequence's `tokens`, at most `most` of them, to RAM.

        The sequence stays as it is. Fewer tokens than all are copied only where moves are sliced. A copy
        `ahead` of need takes the room of nothing that is worth as much: else two states that do not fit
        both would take turns for ever.
        """
        began = time.perf_counter()
        now = self._clock()
        part, covered = self.find(tokens)
        if not self.by_rows and covered < len(tokens):
            part, covered = None, 0
        if covered == len(tokens):
            assert part is not None
            self._claim(job, part, covered, now)
            return Parking.DONE
        end = len(tokens)
        if most is not None and transfer.sliced:
            end = min(end, covered + most)
        # What the new part hangs from must not be given up to make room for it.
        if part is not None:
            part.busy += 1
        size = transfer.size_of(seq, covered, end)
        worth = math.inf
        if ahead:
            owners = set() if job is None else {job}
            worth = self._density(Part("", part, covered, tokens[covered:end], size, now, owners=owners))
        saved = self._save(transfer, seq, covered, end) if self._free_ram(size, worth) else None
        if part is not None:
            part.busy -= 1
        if saved is None:
            return Parking.FAILED
        new = self.tree.add(part, covered, tokens[covered:end], saved.size, now)
        new.buffer, new.offset = saved.buffer, saved.offset
        self._claim(job, new, end, now)
        self.stats.shared_bytes += 0 if part is None or job in part.owners else self.bytes_of(part, covered)
        self.stats.park_bytes += saved.size
        self.stats.park_s += time.perf_counter() - began
        if end < len(tokens):
            return Parking.MORE
        self.stats.parks += 1
        return Parking.DONE

    def _save(self, transfer: Transfer, seq: int, start: int, end: int) -> Saved | None:
        saved = transfer.save(seq, start, end)
        if saved is None:
            self.stats.failures += 1
        return saved

    def _claim(self, job: str | None, part: Part, length: int, now: float) -> None:
        before = None if job is None else self.tree.end_of(job)
        self.tree.own(job, part, length)
        for piece in path(part, length):
            piece.part.last_used, piece.part.sinking = now, False
        if before is not None:
            self._prune(before[0])

    # -- restoring ---------------------------------------------------------------------------------

    def read(self, parts: Sequence[Part]) -> bool:
        """Begins to read parts that are on disk only, all or none of them; whether they have room in RAM.

        Those that are being read already are passed over.
        """
        assert self.disk is not None
        idle = [part for part in parts if not self.disk.is_moving(part)]
        buffers = self._acquire([part.size + MARGIN for part in idle])
        if buffers is None:
            return False
        for part, buffer in zip(idle, buffers, strict=True):
            self.disk.read(part, buffer)
        return True

    def holds_besides(self, holds: int) -> bool:
        """Whether anybody but the owner of so many holds needs parts where they are, for the moment."""
        disk_is_busy = self.disk is not None and self.disk.busy
        return disk_is_busy or sum(part.busy for part in self.tree) > holds

    def knows(self, part: Part) -> bool:
        """Whether the part still exists."""
        return self.tree.parts.get(part.id) is part

    def restored(self, pieces: Sequence[Piece], seconds: float) -> None:
        """Counts a restore; its parts were used just now."""
        now = self._clock()
        for piece in pieces:
            piece.part.last_used, piece.part.sinking = now, False
            self.stats.restore_bytes += piece.size
        self.stats.restores += 1
        self.stats.restore_s += seconds

    def discard(self, part: Part, reason: str) -> None:
        """Forgets a part that turned out to be unusable, and all that hangs from it."""
        self.stats.failures += 1
        self._note(f"parked KV up to token {part.end} is lost and will be computed again: {reason}")
        self._remove(part)

    def drop_job(self, job: str) -> int:
        """Forgets a job's parked state; returns its tokens. What others share stays."""
        found = self.tree.end_of(job)
        if found is None:
            return 0
        self.tree.disown(job)
        self._prune(found[0])
        return found[1]

    # -- room --------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Takes in what the disk finished."""
        for part, reason in self.disk.poll() if self.disk is not None else ():
            self.discard(part, reason)

    def tick(self, write_behind_s: float) -> None:
        """Takes in what the disk finished, and hands it what has not been used for so many seconds."""
        if self.disk is None:
            return
        self.poll()
        before = self._clock() - write_behind_s
        # Making room on the disk for one part may remove others.
        for part in list(self.tree):
            if part.buffer is None or not self.knows(part):
                continue
            if part.sinking or part.last_used <= before:
                self.disk.write(part, self._value)
                if part.sinking and part.on_disk and not part.busy:
                    self._release(part)

    def sink(self, job: str) -> None:
        """Has the job's parked state moved from RAM to disk, as far as no other job shares it."""
        found = self.tree.end_of(job)
        if self.disk is None or found is None:
            return
        for piece in path(*found):
            piece.part.sinking = len(piece.part.children) <= 1

    def relieve_ram(self, size: int, *, lose: bool = True) -> int:
        """Frees up to `size` bytes of RAM, what is worth least first; returns those freed.

        Unused buffers and what is on disk too go at once. With `lose` so does the rest; else the disk is
        given as much of it as is missing, and its RAM is free once it is written.
        """
        before = self.arena.allocated
        self.arena.trim()
        while before - self.arena.allocated < size and self._give_up_one(lose=lose):
            self.arena.trim()
        freed = before - self.arena.allocated
        if self.disk is not None and not lose:
            self._sink_least(size - freed)
        return freed

    def _sink_least(self, size: int) -> None:
        for part in sorted((p for p in self.tree if p.buffer is not None), key=self._density):
            if size <= 0:
                return
            part.sinking = True
            size -= part.size

    def _acquire(self, sizes: Sequence[int]) -> list[Bytes] | None:
        """A buffer for each size, or none at all when there is no room for all of them."""
        buffers: list[Bytes] = []
        if self._free_ram(sum(sizes)):
            for size in sizes:
                # Each may be a little larger than it was asked to be.
                buffer = self.arena.acquire(size)
                if buffer is None:
                    break
                buffers.append(buffer)
        if len(buffers) == len(sizes):
            return buffers
        for buffer in buffers:
            self.arena.release(buffer)
        return None

    def _free_ram(self, size: int, worth: float = math.inf) -> bool:
        """Makes room for so many bytes at the cost of what is worth less for its size; whether there is."""
        held = sum(len(part.buffer) for part in self.tree if part.buffer is not None and not part.busy)
        if not self.arena.fits(size - held):
            # Nothing is given up for what has no room anyway.
            return False
        while not self.arena.fits(size):
            if not self._give_up_one(worth):
                return False
        return True

    def _give_up_one(self, worth: float = math.inf, *, lose: bool = True) -> bool:
        """Gives up the RAM copy that is worth least for its size; False when there is none to give up."""
        held = [p for p in self.tree if p.buffer is not None and not p.busy]
        # What is on disk too is only slower to come back; of the rest only the ends can go alone.
        candidates = [p for p in held if p.on_disk]
        if lose and not candidates:
            candidates = [p for p in held if not p.children]
        worst = min(candidates, key=self._density, default=None)
        if worst is None or self._density(worst) >= worth:
            return False
        if not worst.on_disk:
            self.stats.evictions += 1
            self._remove(worst)
        else:
            self._release(worst)
        return True

    def _density(self, part: Part) -> float:
        return self._value(part) / max(1, part.size)

    def _release(self, part: Part) -> None:
        if part.buffer is not None:
            self.arena.release(part.buffer)
        part.buffer, part.sinking = None, False

    def _prune(self, part: Part | None) -> None:
        """Removes what nobody's state ends in or goes through any more, from `part` towards the root."""
        while part is not None and not part.children and not part.owners and not part.busy:
            parent = part.parent
            self._remove(part)
            part = parent

    def _remove(self, part: Part) -> None:
        for gone in self.tree.remove(part):
            in_flight = self.disk is not None and self.disk.forget(gone)
            if gone.buffer is not None and not in_flight:
                self.arena.release(gone.buffer)
            gone.buffer = None
