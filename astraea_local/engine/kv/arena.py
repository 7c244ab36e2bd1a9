"""Host memory for KV states, within a byte budget.

Saving into memory that was used before runs at memory speed; into fresh memory it is many times slower,
because the kernel has to map and clear every page. Buffers are therefore kept and reused.
"""

import logging
from collections.abc import Callable

import numpy as np

from astraea_local.engine.binding import Bytes

_logger = logging.getLogger(__name__)

_PAGE = 4096
_SMALLEST = 1 << 16
_STEPS = 8
_LARGEST = 1.5

Allocate = Callable[[int], Bytes]


def plain(size: int) -> Bytes:
    """Ordinary memory that begins with a page.

    numpy's begin 16 bytes later, with which some CPUs copy to and from pages at less than half their speed.
    """
    whole = np.empty(size + _PAGE, dtype=np.uint8)
    start = -whole.ctypes.data % _PAGE
    return whole[start : start + size]


def page_locked() -> Allocate | None:
    """Allocates memory that a GPU reads and writes directly, through torch; None without a CUDA torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def allocate(size: int) -> Bytes:
        try:
            array: Bytes = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError as error:
            _logger.warning("no page-locked memory for %d bytes, plain memory instead: %s", size, error)
            return plain(size)
        return array

    return allocate


class BufferArena:
    """Byte buffers that are only ever allocated, reused, and freed when the budget needs it."""

    def __init__(self, budget_bytes: int, allocate: Allocate = plain) -> None:
        self.budget = budget_bytes
        self.allocated = 0
        self._allocate = allocate
        self._free: list[Bytes] = []

    @property
    def idle_bytes(self) -> int:
        """Bytes of buffers that nobody uses at present."""
        return sum(len(b) for b in self._free)

    def fits(self, size: int) -> bool:
        """Whether `acquire` would find room."""
        return self.allocated - self.idle_bytes + size <= self.budget

    def reuses(self, size: int) -> bool:
        """Whether `acquire` would give memory that was used before."""
        return bool(self._fitting(size))

    def acquire(self, size: int) -> Bytes | None:
        """A buffer of at least `size` bytes, or None when the budget does not allow one."""
        if fitting := self._fitting(size):
            best = min(fitting, key=len)
            self._free = [b for b in self._free if b is not best]
            return best
        want = size_class(size)
        self._make_room(want)
        if self.allocated + want > self.budget:
            want = size
        if self.allocated + want > self.budget:
            return None
        self.allocated += want
        return self._allocate(want)

    def release(self, buffer: Bytes) -> None:
        """Takes a buffer back for reuse."""
        self._free.append(buffer)

    def trim(self) -> None:
        """Frees every buffer that nobody uses."""
        self.allocated -= self.idle_bytes
        self._free.clear()

    def _fitting(self, size: int) -> list[Bytes]:
        # One that is much too large would be lost to the large states for as long as the small one stays.
        return [b for b in self._free if size <= len(b) <= max(_SMALLEST, _LARGEST * size)]

    def _make_room(self, want: int) -> None:
        # What is free does not fit this caller: give it back before saying no.
        while self._free and self.allocated + want > self.budget:
            self.allocated -= len(self._free.pop())


def size_class(size: int) -> int:
    """`size` rounded up to one of eight steps between two powers of two, so that buffers fit again."""
    if size <= _SMALLEST:
        return _SMALLEST
    step = (1 << (size - 1).bit_length() - 1) // _STEPS
    return -(-size // step) * step
