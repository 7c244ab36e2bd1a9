"""States that somebody needs in RAM: what is missing is read from disk, and what is there stays there.

A state begins to be read once all of it has room. Reading one part as soon as it has, two states that do
not fit together would take turns in pushing each other out, and so would the parts of one that is larger
than the RAM.
"""

from dataclasses import dataclass

from astraea_local.engine.kv.parts import Part, Piece, path
from astraea_local.engine.kv.store import ParkedStore

Key = int | str
"""The segment that a state is restored for; its job, when it is brought back before it asks."""


@dataclass(slots=True)
class _Fetch:
    part: Part
    length: int
    pieces: list[Piece]
    """Those that fit in RAM, from the first on; their parts are held."""
    asked: bool = True
    """Since `end_unasked` was last called."""


class Fetches:
    """All states that are wanted in RAM for one context."""

    def __init__(self, store: ParkedStore) -> None:
        self._store = store
        self._open: dict[Key, _Fetch] = {}

    def fetch(self, key: Key, part: Part, length: int) -> list[Piece] | None:
        """The pieces of the first `length` tokens through `part`, all in RAM; None: ask again.

        Fewer pieces, or none, where not all of them fit in the RAM budget at once. They stay in RAM until
        `end`, or until nobody asked in a round.
        """
        fetch = self._begun(key, part, length)
        fetch.asked = True
        while all(self._store.knows(piece.part) for piece in fetch.pieces):
            missing = [piece.part for piece in fetch.pieces if piece.part.buffer is None]
            if not missing:
                return fetch.pieces
            if self._store.read(missing):
                return None
            if self._store.holds_besides(len(fetch.pieces)):
                # Others will be done. Waiting for them with some parts held, they might wait for those.
                break
            fetch.pieces.pop().part.busy -= 1
        self.end(key)
        return None

    def end(self, key: Key) -> None:
        """The parts may be given up again."""
        fetch = self._open.pop(key, None)
        for piece in fetch.pieces if fetch is not None else ():
            piece.part.busy -= 1

    def end_all(self) -> None:
        """The same for all."""
        for key in list(self._open):
            self.end(key)

    def end_unasked(self) -> None:
        """Begins a round: ends what nobody asked for in the last one."""
        for key, fetch in list(self._open.items()):
            if not fetch.asked:
                self.end(key)
            fetch.asked = False

    def _begun(self, key: Key, part: Part, length: int) -> _Fetch:
        fetch = self._open.get(key)
        if fetch is None or fetch.part is not part or fetch.length != length:
            self.end(key)
            fetch = self._open[key] = _Fetch(part, length, path(part, length))
            for piece in fetch.pieces:
                piece.part.busy += 1
        return fetch
