"""Parked states: they come back exactly, and never take more memory than allowed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Batch, Bytes, Context, ContextParams, Logits, Model, Tokens
from astraea_local.engine.kvstore import BufferArena, RamStore

_MIB = 1 << 20
_BATCH = 128


class ArenaMachine(RuleBasedStateMachine):
    """Whatever is acquired and released, the budget holds and no two callers get the same bytes."""

    @initialize(budget=st.integers(0, 12 * _MIB))
    def start(self, budget: int) -> None:
        self.arena = BufferArena(budget)
        self.live: dict[int, Bytes] = {}
        self.count = 0

    @rule(size=st.integers(1, 6 * _MIB))
    def acquire(self, size: int) -> None:
        in_use = sum(len(buffer) for buffer in self.live.values())
        buffer = self.arena.acquire(size)
        if buffer is None:
            assert in_use + size > self.arena.budget
            return
        assert len(buffer) >= size
        self.count = self.count % 255 + 1
        while self.count in self.live:
            self.count = self.count % 255 + 1
        buffer[[0, -1]] = self.count
        self.live[self.count] = buffer

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        mark = data.draw(st.sampled_from(sorted(self.live)))
        self.arena.release(self.live.pop(mark))

    @invariant()
    def stays_within_the_budget(self) -> None:
        if hasattr(self, "arena"):
            in_use = sum(len(buffer) for buffer in self.live.values())
            assert in_use <= self.arena.allocated <= self.arena.budget

    @invariant()
    def buffers_are_nobody_elses(self) -> None:
        for mark, buffer in getattr(self, "live", {}).items():
            assert buffer[0] == buffer[-1] == mark


TestArena = ArenaMachine.TestCase


def _acquired(arena: BufferArena, size: int) -> Bytes:
    buffer = arena.acquire(size)
    assert buffer is not None
    return buffer


def test_a_released_buffer_is_used_again() -> None:
    arena = BufferArena(64 * _MIB)
    first = _acquired(arena, 4 * _MIB)
    arena.release(first)
    assert _acquired(arena, 4 * _MIB + 1000) is first


def test_the_smallest_fitting_buffer_is_taken() -> None:
    arena = BufferArena(64 * _MIB)
    large, small = _acquired(arena, 5 * _MIB), _acquired(arena, 3 * _MIB)
    arena.release(small)
    arena.release(large)
    assert _acquired(arena, 3 * _MIB) is small


def test_buffers_that_are_too_small_make_room_for_a_large_one() -> None:
    arena = BufferArena(8 * _MIB)
    for buffer in [_acquired(arena, _MIB) for _ in range(4)]:
        arena.release(buffer)
    assert len(_acquired(arena, 7 * _MIB)) >= 7 * _MIB


def test_one_large_state_does_not_shrink_the_store_for_small_ones() -> None:
    arena = BufferArena(64 * _MIB)
    arena.release(_acquired(arena, 60 * _MIB))
    small = [arena.acquire(_MIB) for _ in range(20)]
    assert all(buffer is not None for buffer in small)


class _Rig:
    """A context of a tiny model, decoded into without any record."""

    def __init__(self, model: Model, *, unified: bool, kv: str = "f16", n_ctx: int = 1024) -> None:
        self.context = Context(
            model,
            ContextParams(
                n_ctx=n_ctx,
                n_seq=4,
                n_batch=_BATCH,
                n_ubatch=_BATCH,
                unified=unified,
                type_k=kv,
                type_v=kv,
                flash_attention="on",
            ),
        )
        self.batch = Batch(_BATCH)

    def __enter__(self) -> "_Rig":
        return self

    def __exit__(self, *_error: object) -> None:
        self.batch.close()
        self.context.close()

    def decode(self, seq: int, tokens: Tokens) -> Logits:
        self.batch.clear()
        last = self.batch.add(tokens, self.context.seq_end(seq), seq, last_logits=True)
        assert self.context.decode(self.batch) == 0
        return self.context.logits(last).copy()


def _tokens(count: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(3, 259, count).astype(np.int32)


@pytest.fixture(scope="module")
def model(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Model]:
    with Model(tiny_path("tiny")) as model:
        yield model


@pytest.fixture
def rig(model: Model) -> Iterator[_Rig]:
    with _Rig(model, unified=False) as rig:
        yield rig


both_layouts = pytest.mark.parametrize("unified", [False, True], ids=["per_slot", "unified"])


@both_layouts
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("shape", ["tiny", "tiny-swa", "tiny-recurrent", "tiny-hybrid"])
def test_a_restored_state_continues_bit_by_bit(
    tiny_path: Callable[[ShapeName], Path], shape: ShapeName, kv: str, unified: bool
) -> None:
    held, tail, more = _tokens(100), _tokens(7, 1), _tokens(1, 2)
    store = RamStore(8 * _MIB)
    with Model(tiny_path(shape)) as model, _Rig(model, unified=unified, kv=kv) as rig:
        rig.decode(0, held)
        assert store.park(rig.context, 0, held, "job", 1.0)
        wanted = [rig.decode(0, tail), rig.decode(0, more)]
        rig.context.seq_rm(0)
        rig.decode(1, _tokens(60, 3))
        assert store.restore(rig.context, store.snapshots[0], 2, 2.0)
        assert rig.context.seq_end(2) == len(held)
        assert np.array_equal(wanted, [rig.decode(2, tail), rig.decode(2, more)])


def test_a_restored_state_may_be_restored_again(rig: _Rig) -> None:
    held, tail = _tokens(50), _tokens(3, 1)
    store = RamStore(8 * _MIB)
    rig.decode(0, held)
    store.park(rig.context, 0, held, "job", 1.0)
    snapshot = store.snapshots[0]
    assert store.restore(rig.context, snapshot, 1, 2.0)
    assert store.restore(rig.context, snapshot, 2, 3.0)
    assert np.array_equal(rig.decode(1, tail), rig.decode(2, tail))
    assert store.stats.restores == 2


def test_the_record_outlives_the_sequence(rig: _Rig) -> None:
    """The caller's tokens are a view that changes with its sequence."""
    held = _tokens(50)
    given = held.copy()
    store = RamStore(8 * _MIB)
    rig.decode(0, held)
    store.park(rig.context, 0, given, "job", 1.0)
    given[:] = 0
    assert np.array_equal(store.snapshots[0].tokens, held)
    assert store.covers(held[:20])
    assert store.covers(held)
    assert not store.covers(_tokens(51))
    assert not store.covers(_tokens(20, 1))


@both_layouts
@pytest.mark.parametrize("damage", ["magic", "streams", "cells", "layers", "truncated"])
def test_a_damaged_state_is_refused_and_forgotten(model: Model, unified: bool, damage: str) -> None:
    held = _tokens(100)
    store = RamStore(8 * _MIB)
    with _Rig(model, unified=unified) as rig:
        rig.decode(0, held)
        rig.decode(1, _tokens(40, 1))
        store.park(rig.context, 0, held, "job", 1.0)
        snapshot = store.snapshots[0]
        if damage == "truncated":
            snapshot.size //= 2
        else:
            start = {"magic": 0, "streams": 8, "cells": 12, "layers": 20}[damage]
            snapshot.buffer[start : start + 4] ^= 0xFF
        assert not store.restore(rig.context, snapshot, 2, 2.0)
        assert rig.context.seq_end(2) == 0
        assert store.snapshots == []
        assert store.bytes_used == 0
        assert (store.stats.restores, store.stats.failures) == (0, 1)
        neighbour = rig.decode(1, held[:5])
    with _Rig(model, unified=unified) as rig:
        rig.decode(1, _tokens(40, 1))
        assert np.array_equal(neighbour, rig.decode(1, held[:5]))


def test_a_state_that_finds_no_cells_is_refused(model: Model) -> None:
    held = _tokens(100)
    store = RamStore(8 * _MIB)
    with _Rig(model, unified=True, n_ctx=256) as rig:
        rig.decode(0, held)
        store.park(rig.context, 0, held, "job", 1.0)
        rig.decode(1, _tokens(100, 1))
        assert not store.restore(rig.context, store.snapshots[0], 2, 2.0)
        assert rig.context.seq_end(2) == 0


class _Parking:
    """Parks states of one size into a store that has room for some of them."""

    def __init__(self, rig: _Rig, states: int) -> None:
        self.rig = rig
        rig.decode(3, _tokens(100))
        self.size = rig.context.state_size(3)
        self.store = RamStore(states * self.size)
        rig.context.seq_rm(3)

    def park(self, job: str | None, now: float, *, useful: bool = True, seed: int = 0) -> bool:
        tokens = _tokens(100, seed)
        self.rig.decode(3, tokens)
        parked = self.store.park(self.rig.context, 3, tokens, job, now, useful=useful)
        self.rig.context.seq_rm(3)
        return parked

    @property
    def jobs(self) -> list[str | None]:
        return [snapshot.job for snapshot in self.store.snapshots]


def test_the_useless_then_the_longest_unused_give_way(rig: _Rig) -> None:
    parking = _Parking(rig, 3)
    parking.park("late", 5.0)
    parking.park("early", 2.0)
    parking.park("useless", 9.0, useful=False)
    assert parking.park("d", 10.0)
    assert parking.jobs == ["late", "early", "d"]
    assert parking.park("e", 11.0)
    assert parking.jobs == ["late", "d", "e"]
    assert parking.store.stats.evictions == 2
    assert parking.store.bytes_used == 3 * parking.size <= parking.store.budget


def test_a_restore_counts_as_use(rig: _Rig) -> None:
    parking = _Parking(rig, 2)
    parking.park("a", 1.0)
    parking.park("b", 2.0)
    assert parking.store.restore(rig.context, parking.store.snapshots[0], 1, 3.0)
    parking.park("c", 4.0)
    assert parking.jobs == ["a", "c"]


def test_a_state_larger_than_the_budget_evicts_nobody(rig: _Rig) -> None:
    parking = _Parking(rig, 1)
    parking.park("a", 1.0)
    tokens = _tokens(110)
    rig.decode(0, tokens)
    assert not parking.store.park(rig.context, 0, tokens, "b", 2.0)
    assert parking.jobs == ["a"]
    assert not _Parking(rig, 0).park("c", 3.0)


def test_a_longer_state_of_the_job_replaces_the_shorter(rig: _Rig) -> None:
    store = RamStore(8 * _MIB)
    tokens = _tokens(60)
    for length in (40, 60):
        rig.decode(0, tokens[rig.context.seq_end(0) : length])
        assert store.park(rig.context, 0, tokens[:length], "job", length)
    assert [len(snapshot.tokens) for snapshot in store.snapshots] == [60]
    assert store.bytes_used == rig.context.state_size(0)


def test_other_branches_other_jobs_and_nobodys_states_stay(rig: _Rig) -> None:
    parking = _Parking(rig, 8)
    for job, seed in (("job", 0), ("job", 1), ("other", 0), (None, 0), (None, 0)):
        assert parking.park(job, 1.0, seed=seed)
    assert parking.jobs == ["job", "job", "other", None, None]


def test_a_newer_state_takes_the_place_of_the_jobs_own_old_one(rig: _Rig) -> None:
    parking = _Parking(rig, 2)
    parking.park("other", 1.0)
    parking.park("job", 2.0)
    assert parking.park("job", 3.0)
    assert parking.jobs == ["other", "job"]
    assert parking.store.stats.evictions == 0


def test_dropping_a_state_frees_its_room(rig: _Rig) -> None:
    parking = _Parking(rig, 1)
    parking.park("a", 1.0)
    snapshot = parking.store.snapshots[0]
    parking.store.drop(snapshot)
    parking.store.drop(snapshot)
    assert parking.store.bytes_used == 0
    assert parking.park("b", 2.0)
    assert parking.park("c", 3.0)
    assert parking.jobs == ["c"]
    assert parking.store.stats.evictions == 1
