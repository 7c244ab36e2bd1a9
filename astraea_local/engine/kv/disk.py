"""Parked states on disk: written and read by two threads, so that the step loop never waits for a disk.

Whatever goes wrong with a file costs its state and nothing else: the caller is told, and computes it again.
"""

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from astraea_local.engine.kv import files
from astraea_local.engine.kv.files import Bytes, ModelIdentity, PartHeader, StateFileError
from astraea_local.engine.kv.folder import RESERVE_BYTES, Quota
from astraea_local.engine.kv.library import PartLibrary
from astraea_local.engine.kv.work import Operation, Reading, Removing, WorkQueue, Writing

_logger = logging.getLogger(__name__)

# A disk that refused is not offered as a place for so long.
_RETRY_S = 30.0
_FREE_AGE_S = 1.0
_GIVEN_UP = "given up, the store closes"
_CLOSED = "the store is closed"


@dataclass(frozen=True, slots=True)
class Written:
    """The part is on disk."""

    part_id: str
    size: int
    """Bytes of the file."""
    seconds: float


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """The part is not on disk, or an older file of it is."""

    part_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Read:
    """The state is in the buffer."""

    part_id: str
    size: int
    """Bytes of the state."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """The buffer holds anything, and the part is no longer on disk."""

    part_id: str
    reason: str


Event = Written | WriteFailed | Read | ReadFailed


class DiskStore:
    """The files of one identity. Its methods are for one thread.

    A buffer given to `write` or `read` belongs to the store until `poll` names its part.
    """

    def __init__(
        self,
        folder: Path,
        identity: ModelIdentity,
        budget_bytes: int,
        *,
        model: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`folder` is the root of all identities, `model` the model file's name. Nothing is touched yet."""
        self.budget = budget_bytes
        self.discarded = 0
        """Files that `open` found unusable."""
        self._library = PartLibrary(folder, identity, model, clock)
        self._quota = Quota(folder, self._library.folder, budget_bytes)
        self._work = WorkQueue()
        self._results: deque[Event] = deque()
        self._unreported = 0
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._lengths: dict[str, int] = {}
        self._refused_at: float | None = None
        self._free = (0, -_FREE_AGE_S)
        self._threads: list[threading.Thread] = []

    @property
    def folder(self) -> Path:
        """Where the files of this identity are."""
        return self._library.folder

    def open(self) -> list[PartHeader]:
        """The parts on disk, and the threads started; `used_at` is the time of the last use.

        Files that cannot be used are removed and counted in `discarded`. Raises no error: a folder that
        cannot be used is logged, holds nothing, and refuses every write.
        """
        found, faults = self._library.index()
        self.discarded = faults.total()
        if faults:
            reasons = ", ".join(f"{count} {reason}" for reason, count in faults.most_common(5))
            _logger.warning("unusable KV states removed from %s: %s", self.folder, reasons)
        self._lengths = {part.header.id: part.length for part in found}
        for name, kinds in (("kv-writer", (Writing, Removing)), ("kv-reader", (Reading,))):
            thread = threading.Thread(target=self._serve, args=kinds, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return [part.header for part in found]

    def write(self, header: PartHeader, data: Bytes) -> None:
        """Queues writing the first `header.size` bytes of `data`; a file of that part is replaced.

        Raises `ValueError` for a header that cannot be written or a buffer that is too short.
        """
        if data.nbytes != len(data) or not data.flags.c_contiguous or len(data) < header.size:
            raise ValueError(f"data: {header.size} bytes in one piece are needed")
        head = self._library.encode(header)
        length = files.file_length(head, header.size)
        operation = Writing(header.id, head, data.data[: header.size], length, header.used_at)
        self._put(operation, WriteFailed(header.id, _CLOSED))

    def read(self, part_id: str, into: Bytes) -> None:
        """Queues reading a part's state into the beginning of `into`."""
        self._put(Reading(part_id, into), ReadFailed(part_id, _CLOSED))

    def remove(self, part_id: str) -> None:
        """Queues removing a part's file, after what is queued. Nothing is reported."""
        self._work.put(Removing(part_id))

    def poll(self) -> list[Event]:
        """What the threads finished since the last call."""
        events = []
        while self._results:
            events.append(self._results.popleft())
        self._unreported -= len(events)
        return events

    @property
    def pending(self) -> int:
        """Writes and reads that `poll` has not reported yet."""
        return self._unreported

    @property
    def bytes_used(self) -> int:
        """Bytes of this identity's files once all that is queued is done."""
        return self._planned()[0]

    def free_bytes(self) -> int:
        """Bytes of files that may still be queued: what budget and device allow, 0 while the disk refuses.

        A file is its state, 4 bytes for each token, and less than 5 KiB.
        """
        now = time.monotonic()
        if self._refused_at is not None and now - self._refused_at < _RETRY_S:
            return 0
        if now - self._free[1] >= _FREE_AGE_S:
            self._free = (self._device_free(), now)
        used, queued = self._planned()
        device = self._free[0] + self._quota.others_bytes - RESERVE_BYTES
        return max(0, min(self.budget - used, device - queued))

    def close(self, *, flush: bool = True, timeout_s: float) -> None:
        """Ends the threads: after all that is queued when `flush`, else as soon as they can.

        What is not done after `timeout_s` seconds is given up and reported as failed. Buffers are free
        afterwards, unless the disk does not answer at all, which is logged.
        """
        self._work.close()
        if not flush:
            self._give_up()
        self._join(timeout_s)
        if any(thread.is_alive() for thread in self._threads):
            self._give_up()
            self._join(1.0)
        if any(thread.is_alive() for thread in self._threads):
            _logger.warning("the disk of %s does not answer", self.folder)
        self._threads = []

    def _put(self, operation: Operation, refusal: Event) -> None:
        self._unreported += 1
        if not self._threads or not self._work.put(operation):
            self._results.append(refusal)

    def _planned(self) -> tuple[int, int]:
        """Bytes of the files once all that is queued is done, and those of them that are queued."""
        with self._lock:
            planned: dict[str, int] = {}
            queued = 0
            for operation in self._work.unfinished():
                if isinstance(operation, Writing):
                    planned[operation.part_id] = operation.length
                    queued += operation.length
                elif isinstance(operation, Removing):
                    planned[operation.part_id] = 0
            known = self._lengths
            changes = sum(length - known.get(part_id, 0) for part_id, length in planned.items())
            return sum(known.values()) + changes, queued

    def _give_up(self) -> None:
        self._cancelled.set()
        for operation in self._work.clear():
            if (failure := _failure(operation, _GIVEN_UP)) is not None:
                self._results.append(failure)

    def _join(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _device_free(self) -> int:
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0

    # What follows runs in the two threads.

    def _serve(self, *kinds: type[Operation]) -> None:
        while (operation := self._work.take(*kinds)) is not None:
            length = self._lengths.get(operation.part_id)
            try:
                event, length = self._perform(operation, length)
            except Exception as error:  # Whatever it was, somebody waits for the answer.
                _logger.exception("part %s", operation.part_id)
                event = _failure(operation, repr(error))
            with self._lock:
                if length is None:
                    self._lengths.pop(operation.part_id, None)
                else:
                    self._lengths[operation.part_id] = length
                if event is not None:
                    self._results.append(event)
                self._work.done(operation)

    def _perform(self, operation: Operation, length: int | None) -> tuple[Event | None, int | None]:
        """What is to be reported, and the length of the part's file, which was `length`; None without one."""
        if isinstance(operation, Writing):
            return self._write(operation, length)
        if isinstance(operation, Reading):
            return self._read(operation, length)
        if length is not None and self._library.remove(operation.part_id):
            self._quota.added(-length)
            length = None
        return None, length

    def _write(self, operation: Writing, previous: int | None) -> tuple[Event, int | None]:
        began = time.perf_counter()
        try:
            self._library.prepare()
            reason = self._quota.make_room(operation.length, previous or 0)
            if not reason:
                self._library.write(
                    operation.part_id,
                    operation.head,
                    operation.data,
                    operation.used_at,
                    self._cancelled.is_set,
                )
        except StateFileError as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or repr(error)
            self._refused_at = time.monotonic()
        if reason:
            return WriteFailed(operation.part_id, reason), previous
        self._refused_at = None
        self._quota.added(operation.length - (previous or 0))
        seconds = time.perf_counter() - began
        return Written(operation.part_id, operation.length, seconds), operation.length

    def _read(self, operation: Reading, length: int | None) -> tuple[Event, int | None]:
        began = time.perf_counter()
        part_id = operation.part_id
        try:
            size = self._library.read(part_id, operation.into, self._cancelled.is_set)
        except FileNotFoundError:
            return ReadFailed(part_id, "the file is gone"), None
        except (OSError, StateFileError) as error:
            reason = str(error) if isinstance(error, StateFileError) else error.strerror or repr(error)
            if not self._cancelled.is_set():
                self._library.remove(part_id)
                length = None
            return ReadFailed(part_id, reason), length
        return Read(part_id, size, time.perf_counter() - began), length


def _failure(operation: Operation, reason: str) -> Event | None:
    if isinstance(operation, Writing):
        return WriteFailed(operation.part_id, reason)
    if isinstance(operation, Reading):
        return ReadFailed(operation.part_id, reason)
    return None
