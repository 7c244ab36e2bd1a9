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
_TOUCHED = 1 << 20
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
        self._growing: Bytes | None = None
        self._touched = 0
        """Bytes of what is growing whose pages the system has found."""

    @property
    def idle_bytes(self) -> int:
        """Bytes of buffers that nobody uses at present."""
        return sum(len(b) for b in self._free) + (0 if self._growing is None else len(self._growing))

    def fits(self, size: int) -> bool:
        """Whether `acquire` would find room."""
        return self.allocated - self.idle_bytes + size <= self.budget

    def grows(self, size: int) -> bool:
        """Whether `acquire` would take memory that was never used, or something is being prepared."""
        if self._fitting(size):
            return False
        return self._growing is not None or self.allocated + size_class(size) <= self.budget

    def grow(self, size: int) -> None:
        """Prepares a mebibyte more of what was begun, or of a new buffer for `size` bytes.

        `acquire` finds the buffer once it is complete.
        """
        if self._growing is None:
            want = size_class(size)
            self._growing, self._touched = self._allocate(want), 0
            self.allocated += want
        self._growing[self._touched : self._touched + _TOUCHED : _PAGE] = 0
        self._touched += _TOUCHED
        if self._touched >= len(self._growing):
            self._free.append(self._growing)
            self._growing = None

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
        self._stop_growing()
        self.allocated -= self.idle_bytes
        self._free.clear()

    def _fitting(self, size: int) -> list[Bytes]:
        # One that is much too large would be lost to the large states for as long as the small one stays.
        return [b for b in self._free if size <= len(b) <= max(_SMALLEST, _LARGEST * size)]

    def _make_room(self, want: int) -> None:
        # What is free does not fit this caller: give it back before saying no.
        if self.allocated + want > self.budget:
            self._stop_growing()
        while self._free and self.allocated + want > self.budget:
            self.allocated -= len(self._free.pop())

    def _stop_growing(self) -> None:
        if self._growing is not None:
            self.allocated -= len(self._growing)
            self._growing = None


def size_class(size: int) -> int:
    """`size` rounded up to one of eight steps between two powers of two, so that buffers fit again."""
    if size <= _SMALLEST:
        return _SMALLEST
    step = (1 << (size - 1).bit_length() - 1) // _STEPS
    return -(-size // step) * step
