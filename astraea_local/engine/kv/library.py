"""The files of one identity: made, read and removed, one at a time, in the thread that calls."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from astraea_local.engine.kv import files, folder
from astraea_local.engine.kv.files import Bytes, ModelIdentity, PartHeader, StateFileError, StoredPart

_logger = logging.getLogger(__name__)


class PartLibrary:
    """Parts by id. A file's modification time is the last use of its state."""

    def __init__(self, root: Path, identity: ModelIdentity, model: str, clock: Callable[[], float]) -> None:
        """`clock` gives unix time. Nothing is touched yet."""
        self.folder = root / identity.folder
        self._root = root
        self._identity = identity
        self._model = model
        self._clock = clock

    def prepare(self) -> None:
        """Makes the folder if it is not there, which somebody may have emptied. Raises `OSError`."""
        if not self.folder.is_dir():
            folder.prepare(self._root, self.folder.name)

    def index(self) -> tuple[list[StoredPart], Counter[str]]:
        """The parts with the time of their last use, and why how many other files were removed."""
        try:
            folder.prepare(self._root, self.folder.name)
        except OSError as error:
            _logger.warning("KV states cannot be kept on disk: %s", error)
        faults: Counter[str] = Counter()
        if swept := folder.sweep(self._root):
            faults["left half written"] = swept
        found = (self._examine(path, faults) for path in self._listing())
        return [part for part in found if part is not None], faults

    def encode(self, header: PartHeader) -> bytes:
        """See `files.encode`."""
        return files.encode(header, self._identity, self._model)

    def write(
        self, part_id: str, head: bytes, data: memoryview, used_at: float, cancelled: Callable[[], bool]
    ) -> None:
        """Makes or replaces the file of a part. Raises `OSError`, `StateFileError` when cancelled."""
        with folder.new_file(self._path(part_id)) as descriptor:
            files.write(descriptor, head, data, cancelled)
            with suppress(OSError, OverflowError):
                os.utime(descriptor, (used_at, used_at))

    def read(self, part_id: str, into: Bytes, cancelled: Callable[[], bool]) -> int:
        """Reads a state into the beginning of `into` and returns its bytes. Raises as `files.read_state`."""
        descriptor = os.open(self._path(part_id), os.O_RDONLY)
        try:
            part = self._header(descriptor, part_id)
            files.read_state(descriptor, part, into, cancelled)
            with suppress(OSError, OverflowError):
                now = self._clock()
                os.utime(descriptor, (now, now))
        finally:
            os.close(descriptor)
        return part.header.size

    def remove(self, part_id: str) -> bool:
        """Removes a part's file. False, and a line in the log, when it is still there."""
        try:
            self._path(part_id).unlink(missing_ok=True)
        except OSError as error:
            _logger.warning("a KV state cannot be removed: %s", error)
            return False
        return True

    def _listing(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == folder.SUFFIX)
        except OSError:
            return []

    def _examine(self, path: Path, faults: Counter[str]) -> StoredPart | None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                part = self._header(descriptor, path.stem)
                used_at = os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except (OSError, StateFileError) as error:
            reason = str(error) if isinstance(error, StateFileError) else error.strerror or repr(error)
            faults[reason] += 1
            with suppress(OSError):
                path.unlink()
            return None
        # After the clock was set back, files from the future would be the last to be given up, for ever.
        return replace(part, header=replace(part.header, used_at=min(used_at, self._clock())))

    def _header(self, descriptor: int, part_id: str) -> StoredPart:
        part = files.read_header(descriptor)
        if part.identity != self._identity:
            raise StateFileError("of another model or other settings")
        if part.header.id != part_id:
            raise StateFileError("under another part's name")
        return part

    def _path(self, part_id: str) -> Path:
        return self.folder / f"{part_id}{folder.SUFFIX}"
