"""llama.cpp's saved sequence state, taken apart into rows of tokens and put together again.

The blob that `llama_state_seq_get_data` writes for a model with one full-attention KV cache (see
`llama_kv_cache::state_write`) is a list of cells followed by a table for each layer's K and V, with a row for
each cell. `Rows.parse` accepts only what it understands to the last byte; whatever else a model writes
(sliding window, recurrent state, cells with extra data) is None there and has to be kept whole.

A part is kept in the canonical form: the cells of one stream, as a unified context writes it. A per-slot
context writes a cell count for each of its streams, all but one of them 0, and wants as many back; both are a
matter of a few bytes before and after the section, so neither direction copies rows.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from astraea_local.engine.binding import MAX_SEQUENCES, Bytes

_HEAD = struct.Struct("<III")  # magic, sequence id, number of streams
_COUNT = struct.Struct("<I")
_TABLES = struct.Struct("<II")  # whether V is transposed, number of layers
_ROW_TABLE = struct.Struct("<iQ")  # element type, bytes of a row
_COLUMN_TABLE = struct.Struct("<iII")  # element type, bytes of an element, elements of a row
_CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("seq", "<i4")])
_MAX_LAYERS = 4096

MARGIN = _COUNT.size * (MAX_SEQUENCES - 1)
"""Bytes that a buffer needs behind a canonical part, so that `address` can write there."""

Positions = npt.NDArray[np.int32]


def canonical(blob: Bytes, streams: int) -> Bytes | None:
    """The part of a freshly saved `blob` that is its canonical form; rewrites a few bytes, copies none.

    None when it does not hold the cells of exactly one stream.
    """
    if len(blob) < _HEAD.size + _COUNT.size * streams:
        return None
    magic, seq, found = _HEAD.unpack_from(blob.data)
    if found != streams:
        return None
    skipped = 0
    while skipped < streams and _COUNT.unpack_from(blob.data, _HEAD.size + _COUNT.size * skipped)[0] == 0:
        skipped += 1
    behind = _COUNT.size * (streams - 1 - skipped)
    if skipped == streams or blob[len(blob) - behind :].any():
        return None
    part = blob[_COUNT.size * skipped : len(blob) - behind]
    _HEAD.pack_into(part.data, 0, magic, seq, streams)
    return part


def is_addressed(buffer: Bytes, size: int, streams: int) -> bool:
    """Whether `address` would change nothing."""
    counts = buffer[size : size + _COUNT.size * (streams - 1)]
    return bool(_HEAD.unpack_from(buffer.data)[2] == streams and not counts.any())


def address(buffer: Bytes, size: int, streams: int) -> Bytes:
    """The canonical part in `buffer[:size]` as a context with that many streams reads it; copies nothing.

    `buffer` must have `MARGIN` bytes behind the part, which may be written to, as may its head.
    """
    whole = buffer[: size + _COUNT.size * (streams - 1)]
    if not is_addressed(buffer, size, streams):
        magic, seq, _streams = _HEAD.unpack_from(buffer.data)
        _HEAD.pack_into(buffer.data, 0, magic, seq, streams)
        whole[size:] = 0
    return whole


@dataclass(frozen=True, slots=True)
class _Table:
    """Where one layer's K or V rows are: an array of (outer, cells, width) bytes."""

    header: bytes
    offset: int
    outer: int
    width: int


@dataclass(frozen=True, slots=True)
class Rows:
    """A canonical part and where everything is in it."""

    blob: Bytes
    positions: Positions
    """Of each cell, in the order of the rows."""
    tables: tuple[_Table, ...]
    prefix: bytes
    """Magic, sequence id and stream count."""
    shape: bytes
    """Transposition and number of layers."""

    @classmethod
    def parse(cls, blob: Bytes) -> Self | None:
        """Reads a canonical part; None when it is anything but that, to the last byte."""
        try:
            return cls._parse(blob)
        except (struct.error, ValueError):
            return None

    @classmethod
    def _parse(cls, blob: Bytes) -> Self | None:
        cells = _COUNT.unpack_from(blob.data, _HEAD.size)[0]
        start = _HEAD.size + _COUNT.size
        end = start + cells * _CELL.itemsize
        meta = blob[start:end].view(_CELL)
        if len(meta) != cells or not cells or (meta["n_seq"] != 1).any():
            return None
        transposed, layers = _TABLES.unpack_from(blob.data, end)
        if transposed > 1 or layers > _MAX_LAYERS:
            return None
        at = end + _TABLES.size
        tables = []
        for number in range(2 * layers):
            by_column = bool(transposed) and number >= layers
            if by_column:
                _type, width, outer = _COLUMN_TABLE.unpack_from(blob.data, at)
            else:
                _type, width = _ROW_TABLE.unpack_from(blob.data, at)
                outer = 1
            header = _COLUMN_TABLE.size if by_column else _ROW_TABLE.size
            tables.append(_Table(blob[at : at + header].tobytes(), at + header, outer, width))
            at += header + outer * width * cells
        if at != len(blob):
            return None
        prefix = blob[: _HEAD.size].tobytes()
        return cls(blob, meta["pos"].copy(), tuple(tables), prefix, blob[end : end + _TABLES.size].tobytes())

    @property
    def transposed(self) -> bool:
        """Whether V is stored by columns."""
        return bool(_TABLES.unpack(self.shape)[0])

    def size_of(self, cells: int) -> int:
        """Bytes of a part with that many cells."""
        fixed = _HEAD.size + _COUNT.size + _TABLES.size + sum(len(t.header) for t in self.tables)
        return fixed + cells * (_CELL.itemsize + sum(t.outer * t.width for t in self.tables))

    def table(self, index: int) -> npt.NDArray[np.uint8]:
        """Rows of the table as (outer, cells, width) bytes, a view."""
        t = self.tables[index]
        cells = len(self.positions)
        return self.blob[t.offset : t.offset + t.outer * cells * t.width].reshape(t.outer, cells, t.width)

    def fits(self, other: "Rows") -> bool:
        """Whether both come from contexts of the same shape, so that their rows may be joined."""
        return self.shape == other.shape and [t.header for t in self.tables] == [
            t.header for t in other.tables
        ]

    def begin(self, out: Bytes, positions: Positions) -> "Rows":
        """Writes all but the rows of a part with these positions into `out`, which has its exact size."""
        cells = len(positions)
        out[: _HEAD.size] = np.frombuffer(self.prefix, dtype=np.uint8)
        _COUNT.pack_into(out.data, _HEAD.size, cells)
        start = _HEAD.size + _COUNT.size
        end = start + cells * _CELL.itemsize
        meta = out[start:end].view(_CELL)
        meta["pos"], meta["n_seq"] = positions, 1
        meta["seq"] = _HEAD.unpack(self.prefix)[1]
        out[end : end + _TABLES.size] = np.frombuffer(self.shape, dtype=np.uint8)
        at = end + _TABLES.size
        tables = []
        for t in self.tables:
            out[at : at + len(t.header)] = np.frombuffer(t.header, dtype=np.uint8)
            tables.append(_Table(t.header, at + len(t.header), t.outer, t.width))
            at += len(t.header) + t.outer * cells * t.width
        return Rows(out, positions, tuple(tables), self.prefix, self.shape)


def select(rows: Rows, start: int, end: int) -> slice | npt.NDArray[np.intp]:
    """Which cells have positions [start, end): a slice where they lie together, as they nearly always do."""
    chosen = np.flatnonzero((rows.positions >= start) & (rows.positions < end))
    if len(chosen) and chosen[-1] - chosen[0] + 1 == len(chosen):
        return slice(int(chosen[0]), int(chosen[-1]) + 1)
    return chosen


def joined_size(pieces: Sequence[tuple[Rows, int, int]]) -> int:
    """Bytes of `join` of the same pieces."""
    return pieces[0][0].size_of(sum(_count(rows, start, end) for rows, start, end in pieces))


def join(pieces: Sequence[tuple[Rows, int, int]], out: Bytes) -> bool:
    """Writes one part of all pieces into `out`, which has `joined_size`; False when their shapes differ.

    Each piece is (rows, start, end), in positions of the conversation.
    """
    first = pieces[0][0]
    if not all(first.fits(rows) for rows, _start, _end in pieces):
        return False
    chosen = [select(rows, start, end) for rows, start, end in pieces]
    positions = np.concatenate(
        [rows.positions[cells] for (rows, _s, _e), cells in zip(pieces, chosen, strict=True)]
    )
    whole = first.begin(out, positions)
    for index in range(len(first.tables)):
        target = whole.table(index)
        at = 0
        for (rows, _start, _end), cells in zip(pieces, chosen, strict=True):
            source = rows.table(index)[:, cells]
            target[:, at : at + source.shape[1]] = source
            at += source.shape[1]
    return True


def _count(rows: Rows, start: int, end: int) -> int:
    return int(np.count_nonzero((rows.positions >= start) & (rows.positions < end)))
