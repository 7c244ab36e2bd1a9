"""Recordings: one StateFrame in each line, as JSON; compressed when the file's name ends in .gz."""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from pydantic import ValidationError

from astraea_local.frame import FRAME_VERSION, StateFrame

_REMEDY = "make one with `astraea-local top --record`"


class RecordError(Exception):
    """A recording that cannot be written or read; the message is one line naming the file and the remedy."""


class Recorder:
    """Appends frames as they came; each line is complete on disk before the next one begins."""

    def __init__(self, path: Path) -> None:
        """Begins a new file. Raises `RecordError`, also where one is there: it may be hours of work."""
        self.path = path
        self.frames = 0
        self.fault = ""
        """Why it ended before its time; empty when it did not."""
        try:
            raw = path.open("xb")
        except FileExistsError:
            raise RecordError(f"{path}: exists already: choose another name or remove it") from None
        except OSError as error:
            text = f"{path}: cannot be written: {error.strerror}: choose another place"
            raise RecordError(text) from None
        self._raw = raw
        self._file = gzip.GzipFile(fileobj=raw, mode="wb") if path.suffix == ".gz" else raw

    def write(self, frame: bytes) -> None:
        """Adds a frame's JSON. Raises `RecordError`."""
        try:
            self._file.write(frame.replace(b"\n", b" ") + b"\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            self.fault = f"recording ended: {error}"
            raise RecordError(f"{self.path}: {self.fault}") from None
        self.frames += 1

    def close(self) -> None:
        """Completes the file as far as there is room: what was written whole can be read in any case."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._raw.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Recording:
    """The frames of a file, read when they are wanted: a recording may be larger than memory."""

    def __init__(self, path: Path) -> None:
        """Reads where each frame is. Raises `RecordError` when there is none."""
        self.path = path
        self._plain = self._opened(path)
        self._offsets = list(_lines(self._plain))
        try:
            if not self._offsets:
                raise RecordError(f"{path}: has no complete frame: {_REMEDY}")
            if self._line(0)[:1] != b"{":
                raise RecordError(f"{path}: not a recording: {_REMEDY}")
            self.frame(0)
        except RecordError:
            self._plain.close()
            raise

    def __len__(self) -> int:
        return len(self._offsets)

    def frame(self, index: int) -> StateFrame:
        """That frame. Raises `RecordError` for a line that is none of this version."""
        return parse(self._line(index), f"{self.path}:{index + 1}")

    def _line(self, index: int) -> bytes:
        start, end = self._offsets[index]
        self._plain.seek(start)
        return self._plain.read(end - start)

    def close(self) -> None:
        """Closes the file."""
        self._plain.close()

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _opened(path: Path) -> IO[bytes]:
        try:
            if path.suffix != ".gz":
                return path.open("rb")
            # Seeking in gzip means reading from its beginning.
            return io.BytesIO(_unpacked(path))
        except OSError as error:
            raise RecordError(f"{path}: cannot be read: {error.strerror or error}: {_REMEDY}") from None


def parse(data: bytes, where: str) -> StateFrame:
    """A frame of this version. Raises `RecordError` naming the version of another."""
    try:
        return StateFrame.model_validate_json(data)
    except ValidationError as error:
        version = _version(data)
        if version is not None and version != FRAME_VERSION:
            upgrade = "this astraea-local" if version > FRAME_VERSION else "the server"
            text = f"{where}: frame version {version}, this program knows {FRAME_VERSION}: upgrade {upgrade}"
            raise RecordError(text) from None
        raise RecordError(f"{where}: not a StateFrame: {error.errors()[0]['msg']}") from None


def _version(data: bytes) -> int | None:
    try:
        found = json.loads(data)["frame_version"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def _unpacked(path: Path) -> bytes:
    """All that can be read: a recording whose program was killed lacks the end of its last block."""
    unpack = zlib.decompressobj(wbits=31)
    pieces = []
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            try:
                pieces.append(unpack.decompress(piece))
            except zlib.error as error:
                raise OSError(f"not a gzip file: {error}") from None
    return b"".join(pieces)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Start and end of each complete line; a last one without its newline was cut off."""
    start = 0
    for row in file:
        if row.endswith(b"\n"):
            if row.strip():
                yield start, start + len(row)
            start += len(row)
