"""The file of one parked part: its tokens and its KV state, checked before anything is believed.

All numbers are little-endian. In this order: magic (8 bytes), version (4), bytes of JSON (4), number of
tokens (8), bytes of state (8), xxh3 of all that is said so far and of JSON and tokens (8); JSON; tokens
(int32); state; xxh3 of the state, seeded with the header's (8), so that no state passes under another's
header. JSON ends in blanks, so many that the state begins with a page. The index needs the first part only;
the state is checked while it is read.
"""

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# As in `engine.binding`, which loads llama.cpp: the command line reads these files without it.
Tokens = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

MAGIC = b"ASTRAEKV"
VERSION = 1

# Large enough that calls cost little, small enough to be hashed from a cache after the copy.
_SLICE = 1 << 21
_START = struct.Struct("<8sIIQQ")
_SUM = struct.Struct("<Q")
_JSON_LIMIT = 1 << 20
_PAGE = 4096


class StateFileError(Exception):
    """The file is not what it should be; the message says how, fit for a log line."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a state is only valid for."""

    fingerprint: str
    """Of the model file, see `calibration.fingerprint`."""
    type_k: str
    type_v: str
    v_transposed: bool
    """Flash attention is off."""
    form: Literal["rows", "whole"]
    """`rows`: rows of cells, independent of the layout; `whole`: llama.cpp's own blob."""
    layout: str
    """`any` for rows; layout and stream count for whole blobs."""
    llama_cpp: str
    """Version of llama-cpp-python."""

    @property
    def folder(self) -> str:
        """Name of the folder of these states, 32 hex digits."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class PartHeader:
    """One part: tokens [start, start + len(tokens)) of a conversation."""

    id: str
    """32 hex digits: a content address."""
    parent: str
    """Id of the part it hangs from, empty at the root."""
    start: int
    """Tokens before it on its path."""
    tokens: Tokens
    size: int
    """Bytes of state."""
    job: str
    """Last owner, empty when unknown."""
    used_at: float
    """Unix time."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredPart:
    """What a file's header says."""

    header: PartHeader
    identity: ModelIdentity
    model: str
    """The model file's name."""
    checksum: int
    """Of the header."""
    offset: int
    """Where the state begins."""

    @property
    def length(self) -> int:
        """Bytes of the whole file."""
        return self.offset + self.header.size + _SUM.size


PartId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: PartId
    parent: PartId | Literal[""]
    start: int = Field(ge=0)
    job: str
    used_at: float
    model: str
    identity: ModelIdentity


def encode(header: PartHeader, identity: ModelIdentity, model: str) -> bytes:
    """Everything that precedes the state. Raises `ValueError` naming the field that is wrong."""
    try:
        description = _Description(
            id=header.id,
            parent=header.parent,
            start=header.start,
            job=header.job,
            used_at=header.used_at,
            model=model,
            identity=identity,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    if header.size < 0:
        raise ValueError("size: must not be negative")
    text = description.model_dump_json().encode()
    if len(text) > _JSON_LIMIT:
        raise ValueError("job: too long")
    # Blanks behind the JSON let the state begin with a page: copies that straddle pages take longer.
    text += b" " * (-(_START.size + _SUM.size + len(text) + 4 * len(header.tokens)) % _PAGE)
    start = _START.pack(MAGIC, VERSION, len(text), len(header.tokens), header.size)
    body = text + np.ascontiguousarray(header.tokens, dtype="<i4").tobytes()
    return start + _SUM.pack(_checksum(start, body)) + body


def file_length(head: bytes, size: int) -> int:
    """Bytes of the whole file of a state of `size` bytes behind `head` by `encode`."""
    return len(head) + size + _SUM.size


def read_header(descriptor: int) -> StoredPart:
    """What the open file says it holds; leaves its position where the state begins.

    The state itself is not looked at. Raises `StateFileError`, `OSError`.
    """
    present = os.fstat(descriptor).st_size
    start = _exactly(descriptor, min(present, _START.size + _SUM.size))
    if not start.startswith(MAGIC):
        raise StateFileError("not a KV state")
    if len(start) < _START.size + _SUM.size:
        raise StateFileError(f"cut off after {present} bytes")
    _, version, text_size, count, size = _START.unpack_from(start)
    if version != VERSION:
        raise StateFileError(f"format version {version}, this is version {VERSION}")
    offset = len(start) + text_size + 4 * count
    # Before anything is allocated by numbers that may be wrong.
    if present != offset + size + _SUM.size:
        raise StateFileError(f"{present} bytes instead of {offset + size + _SUM.size}")
    if text_size > _JSON_LIMIT + _PAGE:
        raise StateFileError("damaged header")
    (checksum,) = _SUM.unpack_from(start, _START.size)
    body = _exactly(descriptor, text_size + 4 * count)
    if checksum != _checksum(start[: _START.size], body):
        raise StateFileError("damaged header")
    try:
        said = _Description.model_validate_json(body[:text_size])
    except ValidationError as error:
        raise StateFileError(f"header not understood: {error.errors(include_url=False)[0]['msg']}") from None
    tokens = np.frombuffer(body, dtype="<i4", offset=text_size).astype(np.int32, copy=False)
    header = PartHeader(said.id, said.parent, said.start, tokens, size, said.job, said.used_at)
    return StoredPart(header, said.identity, said.model, checksum, offset)


def read_state(descriptor: int, part: StoredPart, into: Bytes, cancelled: Callable[[], bool]) -> None:
    """Reads the state behind a header just read into the beginning of `into`, and checks it.

    Raises `StateFileError`, also when `cancelled` became true, and `OSError`; `into` then holds anything.
    `ValueError`: `into` is too small.
    """
    if len(into) < part.header.size:
        raise ValueError(f"a state of {part.header.size} bytes does not fit into {len(into)}")
    target = into.data[: part.header.size]
    hasher = xxhash.xxh3_64(seed=part.checksum)
    done = 0
    while done < len(target):
        if cancelled():
            raise StateFileError("given up, the store closes")
        count = os.readv(descriptor, [target[done : done + _SLICE]])
        if count == 0:
            raise StateFileError("cut off while it was read")
        hasher.update(target[done : done + count])
        done += count
    if _exactly(descriptor, _SUM.size) != _SUM.pack(hasher.intdigest()):
        raise StateFileError("damaged state")


def check_state(descriptor: int, part: StoredPart) -> None:
    """Reads the state behind a header just read and checks it. Raises `StateFileError`, `OSError`."""
    hasher = xxhash.xxh3_64(seed=part.checksum)
    left = part.header.size
    while left:
        piece = os.read(descriptor, min(left, _SLICE))
        if not piece:
            raise StateFileError("cut off while it was read")
        hasher.update(piece)
        left -= len(piece)
    if _exactly(descriptor, _SUM.size) != _SUM.pack(hasher.intdigest()):
        raise StateFileError("damaged state")


def write(descriptor: int, head: bytes, data: memoryview, cancelled: Callable[[], bool]) -> None:
    """Writes a file: `head` by `encode`, then the state.

    Raises `StateFileError` when `cancelled` became true, and `OSError`.
    """
    (checksum,) = _SUM.unpack_from(head, _START.size)
    hasher = xxhash.xxh3_64(seed=checksum)
    if hasattr(os, "posix_fallocate"):
        # Found bit by bit while writing, the room takes a third longer. Where there is none, writing says so.
        with suppress(OSError):
            os.posix_fallocate(descriptor, 0, file_length(head, len(data)))
    _write_all(descriptor, memoryview(head))
    for start in range(0, len(data), _SLICE):
        if cancelled():
            raise StateFileError("given up, the store closes")
        piece = data[start : start + _SLICE]
        hasher.update(piece)
        _write_all(descriptor, piece)
    _write_all(descriptor, memoryview(_SUM.pack(hasher.intdigest())))


def _checksum(start: bytes, body: bytes) -> int:
    hasher = xxhash.xxh3_64(start)
    hasher.update(body)
    return hasher.intdigest()


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _exactly(descriptor: int, count: int) -> bytes:
    pieces = []
    while count:
        piece = os.read(descriptor, count)
        if not piece:
            raise StateFileError("cut off while it was read")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
