"""The folder of parked states: one sub-folder for each identity, and one budget for all of them."""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_logger = logging.getLogger(__name__)

SUFFIX = ".kv"
TEMPORARY = ".part"

RESERVE_BYTES = 512 << 20
"""Room that is left on the device for everybody else."""

_RESCAN_S = 5.0


def default_root() -> Path:
    """Where states are kept unless the profile says otherwise."""
    return platformdirs.user_cache_path("astraea-local") / "kv"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as the folder shows it."""

    path: Path
    size: int
    used_at: float
    """Unix time; a file's modification time is the last use of its state."""


def prepare(root: Path, name: str) -> Path:
    """Makes the folder `name` under `root`, private to the user, and returns it. Raises `OSError`."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = root / name
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def scan(root: Path) -> Iterator[FoundFile]:
    """All states under `root`, and what is being written or was left half written. Raises no error."""
    for folder in _entries(root):
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in _entries(folder.path):
            # Files come and go meanwhile.
            with suppress(OSError):
                if entry.name.endswith((SUFFIX, TEMPORARY)) and entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    yield FoundFile(Path(entry.path), found.st_size, found.st_mtime)


def sweep(root: Path) -> int:
    """Removes what was left half written by processes that are gone; returns how many files."""
    swept = 0
    for file in scan(root):
        if file.path.suffix == TEMPORARY and _is_abandoned(file.path):
            with suppress(OSError):
                file.path.unlink()
                swept += 1
    return swept


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A descriptor of a temporary file, 0600, that becomes `path` at the end; an error leaves nothing behind.

    There is no fsync: after a power cut a state may lack its tail, which its length or checksum tells.
    Raises `OSError`.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=TEMPORARY, dir=path.parent)
    try:
        # Says that somebody is writing; a dead process holds no lock. Not every file system has locks.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    finally:
        os.close(descriptor)


class Quota:
    """Keeps all files under a root within a budget. For one thread, which is the only one to write `own`."""

    def __init__(self, root: Path, own: Path, budget_bytes: int) -> None:
        self._root = root
        self._own = own
        self._budget = budget_bytes
        self._used = 0
        self._scanned_at = -_RESCAN_S
        self.others_bytes = 0
        """Of other identities' files, which may be removed."""
        self.evictions = 0
        """Files of other identities that were removed."""

    def scan(self) -> list[FoundFile]:
        """Looks at the disk, where others write too; returns other identities' states, oldest first."""
        others = []
        self._used = self.others_bytes = 0
        for file in scan(self._root):
            self._used += file.size
            if file.path.parent != self._own and file.path.suffix == SUFFIX:
                self.others_bytes += file.size
                others.append(file)
        self._scanned_at = time.monotonic()
        return sorted(others, key=lambda file: file.used_at)

    def make_room(self, size: int, replaced: int) -> str:
        """Removes other identities' oldest files until `size` bytes fit in place of `replaced` ones.

        Returns why they do not fit, or nothing. Raises `OSError`.
        """
        free = shutil.disk_usage(self._own).free
        grows = size - replaced
        others: list[FoundFile] = []
        is_stale = time.monotonic() - self._scanned_at >= _RESCAN_S
        if is_stale or self._used + grows > self._budget or size + RESERVE_BYTES > free:
            others = self.scan()
        # What cannot be helped by removing others' files is no reason to remove them.
        if self._used - self.others_bytes + grows > self._budget:
            return "disk budget"
        if size + RESERVE_BYTES > free + self.others_bytes:
            return f"disk full: {free >> 20} MiB are left"
        for oldest in others:
            if self._used + grows <= self._budget and size + RESERVE_BYTES <= free:
                break
            free += self._evict(oldest)
        if self._used + grows > self._budget:
            return "disk budget"
        return "" if size + RESERVE_BYTES <= free else f"disk full: {free >> 20} MiB are left"

    def added(self, size: int) -> None:
        """Counts bytes that were written to `own`, or removed from it (negative)."""
        self._used += size

    def _evict(self, file: FoundFile) -> int:
        """Bytes gained."""
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            _logger.debug("%s", error)
            return 0
        self._used -= file.size
        self.others_bytes -= file.size
        self.evictions += 1
        # The last one leaves an empty folder.
        with suppress(OSError):
            file.path.parent.rmdir()
        return file.size


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            _logger.debug("%s", error)
        return []


def _is_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    else:
        return True
    finally:
        os.close(descriptor)
