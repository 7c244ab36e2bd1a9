"""Parked states on their way into sequences, in slices of one or more in each step."""

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from astraea_local.engine.kv.fetches import Key
from astraea_local.engine.kv.parts import Piece
from astraea_local.engine.kv.store import ParkedStore
from astraea_local.engine.kv.transfer import Transfer
from astraea_local.engine.slots import Sequence, SequenceTable
from astraea_local.engine.stall import Stall
from astraea_local.scheduler.speeds import Speeds


class Restoring(enum.Enum):
    """What became of an attempt to go on with a restore."""

    DONE = enum.auto()
    MORE = enum.auto()
    """This step's time is used up, slices are left."""
    FAILED = enum.auto()
    """Its parts or its cells were lost meanwhile, or llama.cpp did not accept it; the sequence is empty."""


@dataclass(slots=True)
class Restore:
    """One state and the sequence that is reserved for it."""

    target: Sequence
    pieces: list[Piece]
    done: int = 0
    """Pieces that are loaded."""
    seconds: float = 0.0
    """What that took."""

    @property
    def length(self) -> int:
        """Tokens wanted; the last part may bring more."""
        return self.pieces[-1].end

    @property
    def cells(self) -> int:
        """Cells of a common pool that loading the rest takes."""
        return cells_for(self.pieces[self.done :])


def cells_for(pieces: list[Piece]) -> int:
    """Cells that loading these takes: parts are loaded whole, and what is beyond a piece cut off after it."""
    return sum(p.end - p.start for p in pieces) + max((p.part.end - p.end for p in pieces), default=0)


class Restores:
    """All restores under way in one context."""

    def __init__(
        self,
        table: SequenceTable,
        store: ParkedStore,
        transfer: Transfer,
        speeds: Callable[[], Speeds],
    ) -> None:
        self._table = table
        self._store = store
        self._transfer = transfer
        self._speeds = speeds
        self._open: dict[Key, Restore] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def __getitem__(self, key: Key) -> Restore:
        return self._open[key]

    @property
    def jobs(self) -> list[str]:
        """Those whose states are restored before they ask."""
        return [key for key in self._open if isinstance(key, str)]

    def begin(self, key: Key, target: Sequence, pieces: list[Piece]) -> None:
        """Reserves the empty sequence and holds on to the parts; nothing is moved yet."""
        for piece in pieces:
            piece.part.busy += 1
        target.reserved = True
        self._open[key] = Restore(target, pieces)
        self._promise()

    def resume(self, key: Key, stall: Stall) -> Restoring:
        """Moves as much as this step's time allows; after `DONE` and `FAILED` the restore is over."""
        restore = self._open[key]
        if not all(self._store.knows(p.part) and p.part.buffer is not None for p in restore.pieces):
            self.give_up(key)
            return Restoring.FAILED
        before = stall.spent
        move = self._append_pieces if self._transfer.sliced else self._load
        outcome = move(restore, stall)
        restore.seconds += stall.spent - before
        if outcome is Restoring.MORE:
            return outcome
        del self._open[key]
        self._release(restore)
        if outcome is Restoring.FAILED:
            self._table.clear(restore.target)
        else:
            self._store.restored(restore.pieces, restore.seconds)
        return outcome

    def _append_pieces(self, restore: Restore, stall: Stall) -> Restoring:
        """Loads pieces one behind the other, as long as time allows."""
        table, rate = self._table, self._speeds().restore_bytes_s
        for piece in restore.pieces[restore.done :]:
            if not stall.allows(piece.size / rate):
                return Restoring.MORE
            if table.cells_total - table.cells_used < cells_for([piece]):
                # A decode found no other cell. The state is as good as before.
                return Restoring.FAILED
            with stall.timed():
                appended = self._transfer.append(restore.target.id, piece)
            if not appended:
                self._refused(restore)
                return Restoring.FAILED
            table.append(restore.target, piece.part.tokens[: piece.end - piece.start])
            restore.done += 1
            self._promise()
        return Restoring.DONE

    def _load(self, restore: Restore, stall: Stall) -> Restoring:
        """Loads everything at once, into a sequence that has no other cells to take."""
        size = sum(piece.size for piece in restore.pieces)
        if not stall.allows(size / self._speeds().restore_bytes_s):
            return Restoring.MORE
        with stall.timed():
            loaded = self._transfer.load(restore.target.id, restore.pieces)
        if not loaded:
            self._refused(restore)
            return Restoring.FAILED
        tokens = [p.part.tokens[: p.end - p.start] for p in restore.pieces]
        self._table.adopt(restore.target, np.concatenate(tokens))
        return Restoring.DONE

    def _refused(self, restore: Restore) -> None:
        self._store.discard(restore.pieces[-1].part, "llama.cpp did not accept it")

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

    def _promise(self) -> None:
        if self._table.unified:
            self._table.promised = sum(restore.cells for restore in self._open.values())

    def _release(self, restore: Restore) -> None:
        restore.target.reserved = False
        self._promise()
        for piece in restore.pieces:
            piece.part.busy -= 1
