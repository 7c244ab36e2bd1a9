"""The disk below the RAM tier: which parts are written, read and given up there.

A write or read holds the part's buffer until its thread is done with it, even when the part was forgotten
meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from astraea_local.engine.binding import Bytes
from astraea_local.engine.kv.arena import BufferArena
from astraea_local.engine.kv.disk import DiskStore, Read, ReadFailed, WriteFailed, Written
from astraea_local.engine.kv.files import PartHeader
from astraea_local.engine.kv.parts import Part, PartTree

_RETRY_S = 60.0
# Whether a part is worth more than those on a full disk is looked at again after so long.
_FULL_RETRY_S = 1.0
# Of a file, beside its state and 4 bytes for each token.
_FILE_OVERHEAD = 5 << 10


@dataclass(slots=True)
class DiskStats:
    """Counters since start."""

    writes: int = 0
    written_bytes: int = 0
    reads: int = 0
    failures: int = 0
    """Files that could not be written, or were not what they should be."""


class DiskTier:
    """The parts of a tree that are on disk; owned by the engine's thread."""

    def __init__(
        self,
        store: DiskStore,
        arena: BufferArena,
        *,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tree = PartTree()
        self.stats = DiskStats()
        self._store = store
        self._arena = arena
        self._note = note
        self._clock = clock
        self._in_flight: dict[str, tuple[Part, Bytes]] = {}
        self._silent_until = -1.0

    @property
    def budget(self) -> int:
        """Bytes."""
        return self._store.budget

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._store.folder

    @property
    def busy(self) -> bool:
        """Whether reads or writes are under way."""
        return bool(self._in_flight)

    def is_moving(self, part: Part) -> bool:
        """Whether a file with the part's content is being written or read."""
        return part.id in self._in_flight

    def open(self) -> int:
        """Takes in what an earlier server left; returns the number of parts."""
        lag = time.time() - self._clock()
        for header in sorted(self._store.open(), key=lambda h: h.start):
            parent = self.tree.parts.get(header.parent)
            if header.parent and (parent is None or header.start > parent.end):
                self._store.remove(header.id)
                continue
            # A clock that was set back must not make a state the youngest of all for ever.
            used = min(header.used_at - lag, self._clock())
            part = self.tree.add(parent, header.start, header.tokens, header.size, used)
            part.on_disk = True
            if header.job:
                self.tree.own(header.job, part, part.end)
        return len(self.tree)

    def write(self, part: Part, value: Callable[[Part], float]) -> None:
        """Begins to write a part, unless it is there, its parent is not, or the disk has just failed."""
        if part.on_disk or part.busy or part.buffer is None or part.id in self._in_flight:
            return
        if self._clock() < max(self._silent_until, part.refused_until):
            return
        if part.parent is not None and not (part.parent.on_disk or part.parent.id in self._in_flight):
            return
        if not self._make_room(part, value):
            part.refused_until = self._clock() + _FULL_RETRY_S
            return
        self._hold(part, part.buffer)
        self._store.write(
            PartHeader(
                id=part.id,
                parent="" if part.parent is None else part.parent.id,
                start=part.start,
                tokens=part.tokens,
                size=part.size,
                job=next(iter(sorted(part.owners)), ""),
                used_at=time.time() - (self._clock() - part.last_used),
            ),
            part.buffer[part.offset : part.offset + part.size],
        )

    def read(self, part: Part, buffer: Bytes) -> None:
        """Begins to read a part into `buffer`, which is the tier's until `poll` says more."""
        self._hold(part, buffer)
        self._store.read(part.id, buffer[: part.size])

    def poll(self) -> Iterator[tuple[Part, str]]:
        """Takes in what the threads finished; yields parts that could not be read, with the reason."""
        for done in self._store.poll():
            part, buffer = self._in_flight.pop(done.part_id)
            self._count(done, part)
            if self.tree.parts.get(done.part_id) is not part:
                # Forgotten meanwhile, and perhaps parked again.
                self._arena.release(buffer)
                self._store.remove(done.part_id)
                continue
            part.busy -= 1
            match done:
                case Written():
                    part.on_disk = True
                case Read():
                    part.buffer, part.offset = buffer, 0
                case ReadFailed(reason=reason):
                    self._arena.release(buffer)
                    yield part, reason

    def forget(self, part: Part) -> bool:
        """Removes a part's file; True when its buffer is still in use here and is released later."""
        if part.id in self._in_flight:
            return True
        if part.on_disk:
            self._store.remove(part.id)
            part.on_disk = False
        return False

    def close(self, timeout_s: float) -> None:
        """Waits for what is queued, at most so long, and ends the threads."""
        self._store.close(flush=True, timeout_s=timeout_s)

    def _hold(self, part: Part, buffer: Bytes) -> None:
        part.busy += 1
        self._in_flight[part.id] = part, buffer

    def _count(self, done: Written | WriteFailed | Read | ReadFailed, part: Part) -> None:
        match done:
            case Written():
                self.stats.writes += 1
                self.stats.written_bytes += part.size
            case Read():
                self.stats.reads += 1
            case ReadFailed():
                self.stats.failures += 1
            case WriteFailed(reason=reason):
                self.stats.failures += 1
                # Once a minute is enough to try, and to say so.
                self._silent_until = self._clock() + _RETRY_S
                self._note(f"KV states are not written to disk: {reason}")

    def _make_room(self, part: Part, value: Callable[[Part], float]) -> bool:
        """Gives up what is worth less for its size, until the part fits; False when it does not."""

        def worth(each: Part) -> float:
            return value(each) / max(1, each.size)

        while self._store.free_bytes() < part.size + _FILE_OVERHEAD + 4 * len(part.tokens):
            # A file that is the only copy of what others hang from must stay.
            held = [p for p in self.tree if p.on_disk and not p.busy]
            held = [p for p in held if p.buffer is not None or not p.children]
            worst = min(held, key=worth, default=part)
            if worth(worst) >= worth(part):
                return False
            self._store.remove(worst.id)
            worst.on_disk = False
            if worst.buffer is None:
                self.tree.remove(worst)
        return True
