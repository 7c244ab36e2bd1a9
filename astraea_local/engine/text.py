"""Tokens to text, one at a time: no character is cut, no stop string leaks."""

import codecs
from collections.abc import Sequence

from astraea_local.engine.binding import Vocab


class PieceTable:
    """Bytes of each token, looked up once (`llama_token_to_piece` without special tokens)."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._pieces: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._vocab.piece(token, special=False)
        return piece


class TextStream:
    """Text of one segment, given out as soon as it is certain.

    Bytes of an unfinished UTF-8 character, and text that may be the beginning of a stop string, are held
    back. Bytes that can never become a character come out as U+FFFD.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(s for s in stops if s)
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, piece: bytes) -> str:
        """Text that is now certain; empty after a stop string was met."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decoder.decode(piece)
        return self._release()

    def finish(self) -> str:
        """Everything still held back; call it once, at the end of the segment."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        text = self._release() + self._held
        self._held = ""
        return text

    def _release(self) -> str:
        if not self._stops:
            text, self._held = self._held, ""
            return text
        # The first to be complete, so that the cut does not depend on how the text came in pieces.
        cut, stop = min(
            ((at, s) for s in self._stops if (at := self._held.find(s)) >= 0),
            default=(-1, ""),
            key=lambda m: (m[0] + len(m[1]), m[0]),
        )
        if stop:
            text, self._held = self._held[:cut], ""
            self.stopped_by = stop
            return text
        keep = max(_overlap(self._held, s) for s in self._stops)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` with which `text` ends."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
