import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.engine.binding import Bytes
from astraea_local.engine.kv.arena import BufferArena, page_locked, plain, size_class

MIB = 1 << 20


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * MIB)), max_size=60))
def test_the_budget_is_never_exceeded_and_every_buffer_is_large_enough(steps: list[tuple[bool, int]]) -> None:
    arena = BufferArena(8 * MIB)
    held: list[Bytes] = []
    for takes, size in steps:
        if takes or not held:
            fits = arena.fits(size)
            buffer = arena.acquire(size)
            assert (buffer is not None) == fits
            if buffer is not None:
                assert len(buffer) >= size
                held.append(buffer)
        else:
            arena.release(held.pop(size % len(held)))
        assert sum(map(len, held)) <= arena.allocated <= arena.budget
        assert sum(map(len, held)) + arena.idle_bytes == arena.allocated


def test_a_buffer_is_used_again() -> None:
    arena = BufferArena(8 * MIB)
    first = arena.acquire(MIB)
    assert first is not None
    arena.release(first)
    assert arena.acquire(MIB - 1000) is first
    assert arena.allocated == size_class(MIB)


def test_what_nobody_uses_gives_way_to_what_somebody_needs() -> None:
    arena = BufferArena(2 * MIB)
    small = [arena.acquire(MIB // 2) for _ in range(4)]
    assert arena.acquire(MIB) is None
    for buffer in small:
        assert buffer is not None
        arena.release(buffer)
    assert arena.acquire(2 * MIB) is not None


def test_trimming_frees_what_nobody_uses() -> None:
    arena = BufferArena(8 * MIB)
    kept, idle = arena.acquire(MIB), arena.acquire(MIB)
    assert kept is not None
    assert idle is not None
    arena.release(idle)
    arena.trim()
    assert (arena.idle_bytes, arena.allocated) == (0, len(kept))


@given(st.integers(1, 1 << 34))
def test_size_classes_waste_little(size: int) -> None:
    found = size_class(size)
    assert size <= found <= max(1 << 16, 1.25 * size)


class _Torch(SimpleNamespace):
    """As much of torch as is asked; a driver locks no more than 1 MiB."""

    uint8 = "uint8"

    def __init__(self, *, cuda: bool) -> None:
        super().__init__(cuda=SimpleNamespace(is_available=lambda: cuda), locked=0)

    def empty(self, size: int, *, dtype: str, pin_memory: bool) -> SimpleNamespace:
        assert (dtype, pin_memory) == ("uint8", True)
        if size > MIB:
            raise RuntimeError("cannot allocate memory")
        self.locked += size
        return SimpleNamespace(numpy=lambda: np.empty(size, np.uint8))


def test_memory_is_page_locked_where_cuda_is_and_plain_when_the_driver_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = _Torch(cuda=True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    allocate = page_locked()
    assert allocate is not None
    assert (len(allocate(5000)), torch.locked) == (5000, 5000)
    assert (len(allocate(2 * MIB)), torch.locked) == (2 * MIB, 5000)
    assert "no page-locked memory" in caplog.text


@pytest.mark.parametrize("torch", [None, _Torch(cuda=False)], ids=["no torch", "no cuda"])
def test_without_cuda_memory_is_plain(monkeypatch: pytest.MonkeyPatch, torch: _Torch | None) -> None:
    # None makes the import fail.
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert page_locked() is None


@given(st.integers(1, 10 * MIB))
def test_plain_memory_begins_with_a_page(size: int) -> None:
    buffer = plain(size)
    assert len(buffer) == size
    assert buffer.ctypes.data % 4096 == 0


def test_a_buffer_is_prepared_bit_by_bit() -> None:
    arena = BufferArena(10 << 20)
    steps = 0
    while arena.grows(3 << 20):
        arena.grow(3 << 20)
        steps += 1
    assert steps == 3
    assert arena.allocated == arena.idle_bytes == 3 << 20
    prepared = arena.acquire(3 << 20)
    assert prepared is not None
    assert arena.allocated == 3 << 20
    assert not arena.idle_bytes


def test_who_wants_another_size_waits_for_what_was_begun() -> None:
    """Two that take turns both get on."""
    arena = BufferArena(20 << 20)
    sizes = [3 << 20, 6 << 20]
    for _ in range(20):
        for size in sizes:
            if arena.grows(size):
                arena.grow(size)
    assert not any(arena.grows(size) for size in sizes)
    assert arena.allocated == arena.idle_bytes == 9 << 20


def test_nothing_is_prepared_beyond_the_budget() -> None:
    arena = BufferArena(4 << 20)
    assert not arena.grows(5 << 20)
    arena.grow(3 << 20)
    assert arena.fits(4 << 20)
    assert arena.acquire(4 << 20) is not None
    assert arena.allocated == 4 << 20


def test_what_was_begun_is_given_back_too() -> None:
    arena = BufferArena(4 << 20)
    arena.grow(3 << 20)
    arena.trim()
    assert arena.allocated == arena.idle_bytes == 0
