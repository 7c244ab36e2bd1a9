"""How long a step may be held up by moving KV about."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Measured rates vary: a move is planned to take so much of what is left.
_SHARE = 0.6
_FEWEST = 32


class Stall:
    """The time that moving may take of one step; one move is always allowed, or nothing would ever move."""

    def __init__(self, limit_s: float | None) -> None:
        """Without a limit nobody is held up."""
        self._limit = limit_s
        self.spent = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit is not None

    def allows(self, seconds: float) -> bool:
        """Whether a move that is predicted to take so long may be made in this step."""
        return self._limit is None or self.spent == 0.0 or self.spent + seconds / _SHARE <= self._limit

    def tokens(self, token_s: float) -> int | None:
        """Most tokens to move at once, each of which takes so many seconds; None = all."""
        if self._limit is None:
            return None
        return max(_FEWEST, int(_SHARE * (self._limit - self.spent) / max(token_s, 1e-9)))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts what the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - began
