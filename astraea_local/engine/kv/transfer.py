"""Moves KV states between the sequences of a context and host buffers.

With rows (`rows.py`) any stretch of tokens can be moved on its own. In a unified context a spare sequence id
does it: it takes the stretch by reference, is saved or restored, and gives it on. In a per-slot context
llama.cpp moves whole sequences only: what is not wanted of a saved one is left out, and what is restored is
joined first.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astraea_local.engine.binding import Bytes, Context
from astraea_local.engine.kv.arena import Allocate, BufferArena, plain
from astraea_local.engine.kv.parts import Part, Piece
from astraea_local.engine.kv.rows import MARGIN, Rows, address, canonical, is_addressed, join, joined_size

# More than what a part has besides its rows: heads of its tables.
_FIXED = 64 << 10


@dataclass(frozen=True, slots=True)
class Saved:
    """A state in host memory: `size` bytes of `buffer` from `offset` on."""

    buffer: Bytes
    offset: int
    size: int


@dataclass(slots=True)
class Traffic:
    """Bytes and seconds of one direction since start."""

    bytes: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    """The longest single move."""

    def add(self, size: int, seconds: float) -> None:
        """Counts a move."""
        self.bytes += size
        self.seconds += seconds
        self.slowest_s = max(self.slowest_s, seconds)


class Transfer:
    """The way in and out of one context; owned by the engine's thread."""

    def __init__(
        self,
        context: Context,
        arena: BufferArena,
        *,
        by_rows: bool,
        spare: int | None = None,
        allocate: Allocate = plain,
    ) -> None:
        """`spare` is a sequence id of a unified context that nobody else uses."""
        self._context = context
        self._arena = arena
        self.by_rows = by_rows
        self._spare = spare
        self._streams = 1 if context.params.unified else context.params.n_seq
        self._allocate = allocate
        self._scratch: Bytes | None = None
        self.out = Traffic()
        self.back = Traffic()

    @property
    def sliced(self) -> bool:
        """Whether a stretch of a sequence costs no more than its own share to move."""
        return self.by_rows and self._spare is not None

    def size_of(self, seq: int, start: int, end: int) -> int:
        """Bytes that a buffer for the tokens [start, end) of a sequence needs, or a little more."""
        whole = self._context.state_size(seq) + MARGIN
        tokens = self._context.seq_end(seq)
        if not self.by_rows or tokens <= end - start:
            return whole
        return whole * (end - start) // tokens + _FIXED

    def save(self, seq: int, start: int, end: int) -> Saved | None:
        """Copies the tokens [start, end) of a sequence out, which ends at `end` unless moves are `sliced`.

        None when the arena has no room or llama.cpp cannot save.
        """
        began = time.perf_counter()
        if self.sliced:
            saved = self._save_slice(seq, start, end)
        elif start and self.by_rows:
            saved = self._save_tail(seq, start, end)
        else:
            saved = self._save_whole(seq)
        if saved is not None:
            self.out.add(saved.size, time.perf_counter() - began)
        return saved

    def load(self, seq: int, pieces: Sequence[Piece]) -> bool:
        """Puts the pieces, which follow each other from token 0 on, into the empty sequence.

        False leaves the sequence empty. The parts must be in RAM.
        """
        began = time.perf_counter()
        if self.sliced:
            done = all(self._append(seq, piece) for piece in pieces)
        elif len(pieces) > 1:
            done = self._load_joined(seq, pieces)
        else:
            done = self._load_one(seq, pieces[0])
        if not done:
            self._context.seq_rm(seq)
        self.back.add(sum(piece.size for piece in pieces), time.perf_counter() - began)
        return done

    def append(self, seq: int, piece: Piece) -> bool:
        """Adds a piece behind what the sequence holds; only where moves are `sliced`. False adds nothing."""
        began = time.perf_counter()
        done = self._append(seq, piece)
        self.back.add(piece.size, time.perf_counter() - began)
        return done

    def shift(self, seq: int, length: int) -> bool:
        """Takes a sequence out and puts it back, which lands in the lowest cells that are free.

        False leaves it empty.
        """
        scratch = self._scratch_of(self._context.state_size(seq))
        size = self._context.state_save(seq, scratch)
        if not size:
            return True  # it stays where it is
        self._context.seq_rm(seq)
        return self._context.state_load(seq, scratch[:size]) and self._context.seq_end(seq) == length

    # -- out ---------------------------------------------------------------------------------------

    def _save_whole(self, seq: int) -> Saved | None:
        size = self._context.state_size(seq)
        buffer = self._arena.acquire(size + MARGIN)
        if buffer is None:
            return None
        written = self._context.state_save(seq, buffer)
        if written and not self.by_rows:
            return Saved(buffer, 0, written)
        part = canonical(buffer[:written], self._streams) if written else None
        if part is None or Rows.parse(part) is None:
            self._arena.release(buffer)
            return None
        offset = part.ctypes.data - buffer.ctypes.data
        address(buffer[offset:], len(part), self._streams)
        return Saved(buffer, offset, len(part))

    def _save_slice(self, seq: int, start: int, end: int) -> Saved | None:
        assert self._spare is not None
        self._context.seq_cp(seq, self._spare, start, end)
        try:
            return self._save_whole(self._spare)
        finally:
            self._context.seq_rm(self._spare)

    def _save_tail(self, seq: int, start: int, end: int) -> Saved | None:
        size = self._context.state_size(seq)
        scratch = self._scratch_of(size)
        part = canonical(scratch[: self._context.state_save(seq, scratch)], self._streams)
        rows = None if part is None else Rows.parse(part)
        if rows is None:
            return None
        wanted = [(rows, start, end)]
        size = joined_size(wanted)
        buffer = self._arena.acquire(size + MARGIN)
        if buffer is None:
            return None
        join(wanted, buffer[:size])
        address(buffer, size, self._streams)
        return Saved(buffer, 0, size)

    # -- back --------------------------------------------------------------------------------------

    def _load_one(self, seq: int, piece: Piece) -> bool:
        part = piece.part
        if not self._context.state_load(seq, self._addressed(part)):
            return False
        return piece.end >= part.end or self._context.seq_rm(seq, piece.end, -1)

    def _addressed(self, part: Part) -> Bytes:
        assert part.buffer is not None
        data = part.buffer[part.offset :]
        if not self.by_rows:
            return data[: part.size]
        if part.busy and not is_addressed(data, part.size, self._streams):
            # Another thread is writing these bytes to disk: they must not change under it.
            scratch = self._scratch_of(part.size + MARGIN)
            scratch[: part.size] = data[: part.size]
            data = scratch
        return address(data, part.size, self._streams)

    def _load_joined(self, seq: int, pieces: Sequence[Piece]) -> bool:
        wanted = []
        for piece in pieces:
            rows = _rows(piece)
            if rows is None:
                return False
            wanted.append((rows, piece.start, piece.end))
        size = joined_size(wanted)
        scratch = self._scratch_of(size + MARGIN)
        if not join(wanted, scratch[:size]):
            return False
        return self._context.state_load(seq, address(scratch, size, self._streams))

    def _append(self, seq: int, piece: Piece) -> bool:
        part, spare = piece.part, self._spare
        assert part.buffer is not None
        assert spare is not None
        loaded = self._context.state_load(spare, self._addressed(part))
        if loaded:
            if piece.end < part.end:
                self._context.seq_rm(spare, piece.end, -1)
            if piece.start > part.start:
                self._context.seq_rm(spare, 0, piece.start)
            self._context.seq_cp(spare, seq)
        self._context.seq_rm(spare)
        return loaded

    def _scratch_of(self, size: int) -> Bytes:
        if self._scratch is None or len(self._scratch) < size:
            self._scratch = self._allocate(size + size // 4)
        return self._scratch


@dataclass(frozen=True, slots=True)
class Form:
    """How the states of a context can be kept."""

    by_rows: bool
    """They can be taken apart and joined."""
    v_transposed: bool = False
    """V is stored by columns, as it is without flash attention."""


def form_of(context: Context, seq: int) -> Form:
    """Looks at the state of a sequence, which holds some tokens."""
    blob = np.empty(context.state_size(seq), dtype=np.uint8)
    streams = 1 if context.params.unified else context.params.n_seq
    part = canonical(blob[: context.state_save(seq, blob)], streams)
    rows = None if part is None else Rows.parse(part)
    if rows is None or len(rows.positions) != context.seq_end(seq):
        return Form(by_rows=False)
    return Form(by_rows=True, v_transposed=rows.transposed)


def _rows(piece: Piece) -> Rows | None:
    part = piece.part
    assert part.buffer is not None
    return Rows.parse(part.buffer[part.offset : part.offset + part.size])
