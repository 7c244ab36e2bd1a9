"""Parked states on their way into sequences, in slices of one or more in each step."""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from astraea_local.engine.binding import Context
from astraea_local.engine.kv.parts import Piece
from astraea_local.engine.kv.store import ParkedStore
from astraea_local.engine.kv.transfer import Transfer
from astraea_local.engine.slots import Sequence, SequenceTable
from astraea_local.engine.stall import Stall
from astraea_local.scheduler.speeds import Speeds

Key = int | str
"""The segment that a state is restored for; its job, when it is brought back before it asks."""


class Restoring(enum.Enum):
    """What became of an attempt to go on with a restore."""

    DONE = enum.auto()
    MORE = enum.auto()
    """This step's time is used up, slices are left."""
    FAILED = enum.auto()
    """Part of the state was lost meanwhile, or llama.cpp did not accept it; the sequence is empty."""


@dataclass(slots=True)
class Restore:
    """One state and the sequence that is reserved for it."""

    target: Sequence
    pieces: list[Piece]
    length: int
    """Tokens wanted; the last piece may bring more."""
    done: int = 0
    """Pieces that are loaded."""


class Restores:
    """All restores under way in one context."""

    def __init__(
        self,
        context: Context,
        table: SequenceTable,
        store: ParkedStore,
        transfer: Transfer,
        speeds: Callable[[], Speeds],
    ) -> None:
        self._context = context
        self._table = table
        self._store = store
        self._transfer = transfer
        self._speeds = speeds
        self._open: dict[Key, Restore] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def __getitem__(self, key: Key) -> Restore:
        return self._open[key]

    def begin(self, key: Key, target: Sequence, pieces: list[Piece], length: int) -> None:
        """Reserves the empty sequence and holds on to the parts; nothing is moved yet."""
        for piece in pieces:
            piece.part.busy += 1
        target.reserved = True
        self._open[key] = Restore(target, pieces, length)

    def resume(self, key: Key, stall: Stall) -> Restoring:
        """Moves as much as this step's time allows; after `DONE` and `FAILED` the restore is over."""
        restore = self._open[key]
        if not all(self._store.knows(p.part) and p.part.buffer is not None for p in restore.pieces):
            self.give_up(key)
            return Restoring.FAILED
        began = time.perf_counter()
        failed = False
        with stall.timed():
            if self._transfer.sliced:
                rate = self._speeds().restore_bytes_s
                while restore.done < len(restore.pieces) and not failed:
                    piece = restore.pieces[restore.done]
                    if restore.done and not stall.allows(time.perf_counter() - began + piece.size / rate):
                        return Restoring.MORE
                    failed = not self._transfer.append(restore.target.id, piece)
                    self._table.append(restore.target, piece.part.tokens[: piece.end - piece.start])
                    restore.done += 1
            else:
                failed = not self._transfer.load(restore.target.id, restore.pieces)
        del self._open[key]
        self._release(restore)
        if failed:
            self._context.seq_rm(restore.target.id)
            self._table.clear(restore.target)
            self._store.discard(restore.pieces[-1].part, "llama.cpp did not accept it")
            return Restoring.FAILED
        self._store.restored(restore.pieces, time.perf_counter() - began)
        if not self._transfer.sliced:
            tokens = [p.part.tokens[: p.end - p.start] for p in restore.pieces]
            self._table.adopt(restore.target, np.concatenate(tokens))
        return Restoring.DONE

    def give_up(self, key: Key) -> None:
        """Nobody wants it any more: the state is left where it is, and the sequence empty."""
        restore = self._open.pop(key, None)
        if restore is not None:
            self._release(restore)
            self._table.clear(restore.target)

    def give_up_all(self) -> None:
        """The same for every one."""
        for key in list(self._open):
            self.give_up(key)

    def _release(self, restore: Restore) -> None:
        restore.target.reserved = False
        for piece in restore.pieces:
            piece.part.busy -= 1
