"""What happened to every segment: one SQLite file, from which predictors learn and reports read.

The file outlives servers and may be shared by several of them. It is never a reason to stop: a broken
file is moved aside, and `HistoryWriter` goes on without a file for as long as there is none to write to.
"""

import fcntl
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import TracebackType

import platformdirs

_logger = logging.getLogger(__name__)

_VERSION = 1
_SCHEMA = """
BEGIN;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    model TEXT NOT NULL,
    job TEXT NOT NULL,
    kind TEXT NOT NULL,
    parent TEXT,
    number INTEGER NOT NULL,
    arrived REAL NOT NULL,
    queued_s REAL NOT NULL,
    prefill_s REAL NOT NULL,
    decode_s REAL NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    max_output INTEGER NOT NULL,
    new_tokens INTEGER NOT NULL,
    preemptions INTEGER NOT NULL,
    tool TEXT NOT NULL,
    wait_s REAL,
    outcome TEXT NOT NULL,
    -- Python stores the numbers of numpy as their bytes.
    CHECK ('blob' NOT IN (
        typeof(number), typeof(arrived), typeof(queued_s), typeof(prefill_s), typeof(decode_s),
        typeof(prompt_tokens), typeof(cached_tokens), typeof(output_tokens), typeof(max_output),
        typeof(new_tokens), typeof(preemptions), typeof(wait_s)
    ))
);
CREATE VIEW jobs AS
SELECT *, ended - started AS jct_s FROM (
    SELECT
        run,
        job,
        max(kind) AS kind,
        max(parent) AS parent,
        max(model) AS model,
        min(arrived) AS started,
        max(arrived + queued_s + prefill_s + decode_s) AS ended,
        count(*) AS segments,
        sum(output_tokens) AS output_tokens,
        total(queued_s) AS queued_s,
        total(wait_s) AS tool_s
    FROM segments GROUP BY run, job
);
PRAGMA user_version = 1;
COMMIT;
"""

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another program keeps it locked; close that program or try again",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder writable",
}
# What sqlite3 raises for a value that no column takes; the file itself is well.
_UNFIT = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)

_CAPACITY = 10_000
_BATCH = 1000
_RETRY_FACTOR = 30


class HistoryError(Exception):
    """The file cannot be used; the message is one line naming the file and, where known, the remedy."""


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One LLM call that has ended."""

    run: str
    """Id of one engine life."""
    model: str
    job: str
    kind: str
    """Family of jobs that begin alike; "" = unknown."""
    parent: str | None
    number: int
    """0 for the job's first segment."""
    arrived: float
    """Unix time."""
    queued_s: float
    prefill_s: float
    decode_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_output: int
    new_tokens: int
    """Prompt tokens that the job had not had before: the tool's result."""
    preemptions: int
    tool: str
    """Tool that returned before this segment, with its verb (`bash:pytest`); "" = unknown or none."""
    wait_s: float | None
    """Seconds from the end of the job's previous segment to `arrived`; None for the first, or when they
    overlapped."""
    outcome: str
    """`stop`, `length` or `cancelled`."""

    @property
    def ended(self) -> float:
        """Unix time."""
        return self.arrived + self.queued_s + self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All recorded segments of one job in one engine life."""

    run: str
    job: str
    kind: str
    parent: str | None
    model: str
    started: float
    """Unix time at which the first segment arrived."""
    ended: float
    """Unix time at which the last segment ended."""
    segments: int
    output_tokens: int
    queued_s: float
    tool_s: float
    """Sum of the tool waits."""
    jct_s: float
    """Job completion time: `ended` - `started`."""


_SEGMENT_FIELDS = [field.name for field in fields(SegmentRecord)]
_JOB_FIELDS = [field.name for field in fields(JobRecord)]
_COLUMNS = ", ".join(_SEGMENT_FIELDS)
_INSERT = f"INSERT INTO segments ({_COLUMNS}) VALUES ({', '.join('?' for _ in _SEGMENT_FIELDS)})"  # noqa: S608 - our names
_NEWEST_SEGMENTS = f"""
SELECT {_COLUMNS} FROM segments WHERE :model IS NULL OR model = :model ORDER BY id DESC LIMIT :limit
"""  # noqa: S608 - our names
_NEWEST_JOBS = f"SELECT {', '.join(_JOB_FIELDS)} FROM jobs ORDER BY started DESC LIMIT :limit"  # noqa: S608 - our names
_PRUNE = "DELETE FROM segments WHERE id <= (SELECT id FROM segments ORDER BY id DESC LIMIT 1 OFFSET :keep)"
_row = attrgetter(*_SEGMENT_FIELDS)


def default_path() -> Path:
    """The file that servers of this user share; it may not exist yet."""
    return platformdirs.user_state_path("astraea-local") / "history.sqlite3"


class History:
    """The file, open. Belongs to the thread that opened it; every method raises `HistoryError`."""

    def __init__(self, path: Path, *, busy_s: float = 5.0) -> None:
        """Opens or creates it; a broken file is moved aside first. `busy_s`: wait for other writers."""
        self.path = path
        with reported(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(path):
                self._connection = _open(path, busy_s)

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back; may be called twice."""
        self._connection.close()

    def add(self, records: Sequence[SegmentRecord]) -> None:
        """Adds all of them or none. Raises `ValueError` for a record that cannot be stored."""
        with reported(self.path):
            try:
                with self._connection:
                    self._connection.executemany(_INSERT, map(_row, records))
            except _UNFIT as error:
                raise ValueError(f"a record cannot be stored: {error}") from None

    def segments(self, model: str | None = None, limit: int = 20_000) -> list[SegmentRecord]:
        """The `limit` segments added last, of `model` or of all, oldest first."""
        with reported(self.path):
            rows = self._connection.execute(_NEWEST_SEGMENTS, {"model": model, "limit": limit}).fetchall()
        return [SegmentRecord(*row) for row in reversed(rows)]

    def jobs(self, limit: int = 1000) -> list[JobRecord]:
        """The `limit` jobs started last, newest first."""
        with reported(self.path):
            rows = self._connection.execute(_NEWEST_JOBS, {"limit": limit}).fetchall()
        return [JobRecord(*row) for row in rows]

    def prune(self, keep: int) -> None:
        """Drops all but the `keep` segments added last; the oldest job left may lose its beginning."""
        with reported(self.path), self._connection:
            self._connection.execute(_PRUNE, {"keep": keep})


class HistoryWriter:
    """Adds records from a thread of its own, so that whoever produces them never waits for a disk.

    While the file cannot be written, records wait in the queue and writing is tried again; that it fails,
    and that it works again, is logged once each.
    """

    def __init__(self, path: Path, *, keep: int = 200_000, every_s: float = 1.0) -> None:
        """Prunes the file to `keep` segments, then writes every `every_s` seconds."""
        self._path = path
        self._keep = keep
        self._every_s = every_s
        self._queue: deque[SegmentRecord] = deque()
        self._history: History | None = None
        self._failing = False
        # One counter for each thread: two that add to the same one may lose counts.
        self._refused = 0
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were not and will not be written."""
        return self._refused + self._lost

    def put(self, record: SegmentRecord) -> None:
        """Hands a record over; never blocks, never raises. For one thread at a time."""
        if self._closing.is_set() or len(self._queue) >= _CAPACITY:
            self._refused += 1
        else:
            self._queue.append(record)

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued and ends the thread; gives up after `timeout_s` seconds."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause = 0.0
        is_last = False
        while not is_last:
            is_last = self._closing.wait(pause)
            pause = self._every_s if self._write() else self._every_s * _RETRY_FACTOR
        self._lost += len(self._queue)
        self._queue.clear()
        self._release()

    def _write(self) -> bool:
        """Writes all that is queued. False when the file could not be written."""
        try:
            if self._history is None:
                self._history = History(self._path)
                self._history.prune(self._keep)
            while self._queue:
                self._write_batch(self._history)
        except HistoryError as error:
            # Opening it again is what finds a broken file and moves it aside.
            self._release()
            if not self._failing:
                _logger.warning("nothing is recorded until this is solved: %s", error)
            self._failing = True
            return False
        if self._failing:
            _logger.warning("%s: recording again; %d records were dropped", self._path, self.dropped)
        self._failing = False
        return True

    def _write_batch(self, history: History) -> None:
        # They stay in the queue, and so within its bound, until they are written.
        batch = [self._queue[i] for i in range(min(len(self._queue), _BATCH))]
        try:
            history.add(batch)
        except ValueError as error:
            self._lost += len(batch)
            _logger.warning("%d records dropped: %s", len(batch), error)
        for _ in batch:
            self._queue.popleft()

    def _release(self) -> None:
        if self._history is not None:
            self._history.close()
            self._history = None


class _BrokenFile(HistoryError):
    """The file is not a database, or a damaged one."""


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Raises what goes wrong with the file inside as `HistoryError`."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = _REMEDIES.get(_code(error))
        raise HistoryError(f"{path}: {error}" + (f": {remedy}" if remedy else "")) from None
    except OSError as error:
        raise HistoryError(f"{path}: cannot be opened: {error}") from None


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; -1 for an error of the Python module itself."""
    extended: int = getattr(error, "sqlite_errorcode", -1)
    return extended if extended < 0 else extended & 0xFF


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one thread of all processes at a time open the file.

    Two that found it broken would otherwise move each other's new one aside, and SQLite does not wait for
    others while it switches to WAL.
    """
    lock = path.with_name(f"{path.name}.lock")
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path, busy_s: float) -> sqlite3.Connection:
    try:
        return _connect(path, busy_s)
    except _BrokenFile as error:
        _logger.warning("%s: %s: moved to %s, a new history begins", path, error, _set_aside(path))
    return _connect(path, busy_s)


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    if not path.exists():
        # SQLite would give it the umask's mode; the -wal and -shm files take after it.
        path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=busy_s)
    try:
        if _checked_version(connection, path) == 0:
            connection.executescript(_SCHEMA)
        connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode this risks the last records at a power cut, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _checked_version(connection: sqlite3.Connection, path: Path) -> int:
    """Schema version, 0 for an empty file. Raises `_BrokenFile`, and `HistoryError` for a newer one."""
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        # Before the check, which may take what it does not know for damage.
        if version > _VERSION:
            raise HistoryError(
                f"{path}: written by a newer astraea-local (schema {version}, this one knows {_VERSION}): "
                "upgrade astraea-local or move the file away"
            )
        verdict: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if _code(error) in _BROKEN:
            raise _BrokenFile(str(error)) from None
        raise
    if verdict != "ok":
        raise _BrokenFile(" ".join(verdict.split()))
    return version


def _set_aside(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.broken-{n}") for n in count(1))
    aside = next(name for name in names if not name.exists())
    # A -wal file that stayed would be taken for the new database's own.
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside
