"""KV states parked outside the context; here in host memory.

Saving into memory that was used before runs at memory speed; into fresh memory it is many times slower,
because the kernel has to map and clear every page. Buffers are therefore kept and reused.
"""

import time
from dataclasses import dataclass

import numpy as np

from astraea_local.engine.binding import Bytes, Context, Tokens
from astraea_local.engine.slots import common_prefix

_ROUND_TO = 1 << 20
_HEADROOM = 1.25
_LARGEST = 2


class BufferArena:
    """Byte buffers that are only ever allocated, reused, and freed when the budget needs it."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget = budget_bytes
        self.allocated = 0
        self._free: list[Bytes] = []

    def acquire(self, size: int) -> Bytes | None:
        """A buffer of at least `size` bytes, or None when the budget does not allow one."""
        want = -(-int(size * _HEADROOM) // _ROUND_TO) * _ROUND_TO
        # One that is much too large would be lost to the large states for as long as the small one stays.
        fitting = [b for b in self._free if size <= len(b) <= _LARGEST * want]
        if fitting:
            best = min(fitting, key=len)
            self._free = [b for b in self._free if b is not best]
            return best
        # The others are of no use to this caller: give them back before saying no.
        while self._free and self.allocated + want > self.budget:
            self.allocated -= len(self._free.pop())
        if self.allocated + want > self.budget:
            want = size
        if self.allocated + want > self.budget:
            return None
        self.allocated += want
        return np.empty(want, dtype=np.uint8)

    def release(self, buffer: Bytes) -> None:
        """Takes a buffer back for reuse."""
        self._free.append(buffer)


@dataclass(slots=True, eq=False)
class Snapshot:
    """A parked KV state."""

    job: str | None
    tokens: Tokens
    buffer: Bytes
    size: int
    """Bytes of `buffer` in use."""
    last_used: float
    useful: bool = True


@dataclass(slots=True)
class StoreStats:
    """Counters since start."""

    parks: int = 0
    restores: int = 0
    failures: int = 0
    evictions: int = 0
    park_s: float = 0.0
    restore_s: float = 0.0
    restore_bytes: int = 0


class RamStore:
    """Parked states in host memory within a byte budget; the longest unused gives way first."""

    def __init__(self, budget_bytes: int) -> None:
        self._arena = BufferArena(budget_bytes)
        self.snapshots: list[Snapshot] = []
        self.stats = StoreStats()

    @property
    def budget(self) -> int:
        return self._arena.budget

    @property
    def bytes_used(self) -> int:
        return sum(s.size for s in self.snapshots)

    def park(
        self, context: Context, seq: int, tokens: Tokens, job: str | None, now: float, *, useful: bool = True
    ) -> bool:
        """Copies the state of `seq` out and leaves the sequence as it is. False when there is no room."""
        started = time.perf_counter()
        size = context.state_size(seq)
        if size > self.budget:
            return False
        kept = tokens.copy()
        # Before anyone else has to give way.
        self._supersede(job, kept)
        buffer = self._arena.acquire(size)
        while buffer is None and self.snapshots:
            self._evict_one()
            buffer = self._arena.acquire(size)
        if buffer is None:
            return False
        written = context.state_save(seq, buffer)
        if written == 0:
            self._arena.release(buffer)
            self.stats.failures += 1
            return False
        self.snapshots.append(Snapshot(job, kept, buffer, written, now, useful))
        self.stats.parks += 1
        self.stats.park_s += time.perf_counter() - started
        return True

    def restore(self, context: Context, snapshot: Snapshot, seq: int, now: float) -> bool:
        """Puts the state into the empty sequence `seq`. False = failed, and `seq` is empty still."""
        started = time.perf_counter()
        loaded = context.state_load(seq, snapshot.buffer[: snapshot.size])
        if not loaded:
            self.stats.failures += 1
            self.drop(snapshot)
            return False
        snapshot.last_used = now
        self.stats.restores += 1
        self.stats.restore_bytes += snapshot.size
        self.stats.restore_s += time.perf_counter() - started
        return True

    def drop(self, snapshot: Snapshot) -> None:
        """Forgets a parked state; its memory is reused."""
        if snapshot in self.snapshots:
            self.snapshots.remove(snapshot)
            self._arena.release(snapshot.buffer)

    def covers(self, tokens: Tokens) -> bool:
        """Whether some parked state begins with exactly these tokens."""
        return any(
            len(s.tokens) >= len(tokens) and common_prefix(s.tokens, tokens) == len(tokens)
            for s in self.snapshots
        )

    def _supersede(self, job: str | None, tokens: Tokens) -> None:
        for old in [s for s in self.snapshots if job is not None and s.job == job]:
            if common_prefix(old.tokens, tokens) == len(old.tokens):
                self.drop(old)

    def _evict_one(self) -> None:
        oldest = min(self.snapshots, key=lambda s: (s.useful, s.last_used))
        self.drop(oldest)
        self.stats.evictions += 1
