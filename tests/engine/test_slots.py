"""What each sequence holds, against naive models and against llama.cpp itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Batch, Context, ContextParams, Logits, Model, ModelClass, Tokens
from astraea_local.engine.slots import CellLedger, Sequence, SequenceTable, TokenBuffer, common_prefix

_TOKEN_LISTS = st.lists(st.integers(0, 2), max_size=12)
_SEQS = st.integers(0, 3)
_BATCH = 128


def _array(tokens: list[int]) -> Tokens:
    return np.array(tokens, dtype=np.int32)


@given(_TOKEN_LISTS, _TOKEN_LISTS)
def test_common_prefix_is_the_naive_one(a: list[int], b: list[int]) -> None:
    naive = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))
    assert common_prefix(_array(a), _array(b)) == naive


class TokenBufferMachine(RuleBasedStateMachine):
    """A token buffer is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = TokenBuffer()
        self.model: list[int] = []

    @rule(tokens=st.lists(st.integers(0, 2**31 - 1), max_size=150))
    def extend(self, tokens: list[int]) -> None:
        self.buffer.extend(_array(tokens))
        self.model += tokens

    @rule(token=st.integers(0, 2**31 - 1), times=st.integers(1, 70))
    def append(self, token: int, times: int) -> None:
        for _ in range(times):
            self.buffer.append(token)
            self.model.append(token)

    @rule(length=st.integers(0, 200))
    def trim(self, length: int) -> None:
        self.buffer.trim(length)
        del self.model[length:]

    @rule()
    def copy(self) -> None:
        self.buffer = TokenBuffer(self.buffer.view())

    @rule(start=st.integers(0, 200), end=st.integers(0, 200))
    def is_sliced_like_a_list(self, start: int, end: int) -> None:
        assert self.buffer.view(start, end).tolist() == self.model[start:end]
        assert self.buffer.view(start).tolist() == self.model[start:]

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.buffer) == len(self.model)
        assert self.buffer.view().tolist() == self.model


TestTokenBuffer = TokenBufferMachine.TestCase


class CellLedgerMachine(RuleBasedStateMachine):
    """The ledger counts what a list of cells for each sequence would count."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = CellLedger()
        self.cells: dict[int, list[int]] = {seq: [] for seq in range(4)}
        self.computed = 0

    @rule(seq=_SEQS, count=st.integers(1, 9))
    def append(self, seq: int, count: int) -> None:
        self.ledger.append(seq, count)
        self.cells[seq] += range(self.computed, self.computed + count)
        self.computed += count

    @precondition(lambda self: any(self.cells.values()) and not all(self.cells.values()))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from([s for s, cells in self.cells.items() if cells]))
        target = data.draw(st.sampled_from([s for s, cells in self.cells.items() if not cells]))
        count = data.draw(st.integers(0, len(self.cells[source])))
        self.ledger.share(source, target, count)
        self.cells[target] = self.cells[source][:count]

    @rule(seq=_SEQS, length=st.integers(0, 20))
    def trim(self, seq: int, length: int) -> None:
        self.ledger.trim(seq, length)
        del self.cells[seq][length:]

    @invariant()
    def counts_every_used_cell_once(self) -> None:
        assert self.ledger.used == len({cell for cells in self.cells.values() for cell in cells})


TestCellLedger = CellLedgerMachine.TestCase
TestCellLedger.settings = settings(stateful_step_count=30)


class _Rig:
    """A context of a tiny model and its sequence table."""

    def __init__(self, model: Model, *, unified: bool, n_ctx: int = 1024, n_seq: int = 4) -> None:
        params = ContextParams(n_ctx=n_ctx, n_seq=n_seq, n_batch=_BATCH, n_ubatch=_BATCH, unified=unified)
        self.context = Context(model, params)
        self.batch = Batch(_BATCH)
        self.table = SequenceTable(self.context, n_seq, model.model_class)
        self.sequences = self.table.sequences

    def __enter__(self) -> "_Rig":
        return self

    def __exit__(self, *_error: object) -> None:
        self.batch.close()
        self.context.close()

    def fits(self, sequence: Sequence, tokens: Tokens) -> bool:
        """Computes and records tokens at the end of a sequence; False when llama.cpp found no room."""
        self.batch.clear()
        self._last = self.batch.add(tokens, len(sequence.tokens), sequence.id, last_logits=True)
        code = self.context.decode(self.batch)
        assert code in (0, 1)
        if code == 0:
            self.table.append(sequence, tokens)
        return code == 0

    def decode(self, sequence: Sequence, tokens: Tokens) -> Logits:
        """Computes tokens for which there is room; returns the logits after the last."""
        assert self.fits(sequence, tokens)
        return self.context.logits(self._last).copy()


def _tokens(count: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(3, 259, count).astype(np.int32)


@pytest.fixture(scope="module")
def model(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Model]:
    with Model(tiny_path("tiny")) as model:
        yield model


both_layouts = pytest.mark.parametrize("unified", [False, True], ids=["per_slot", "unified"])


@both_layouts
@pytest.mark.parametrize("shape", ["tiny", "tiny-swa"])
def test_a_copied_prefix_continues_like_a_fresh_prefill(
    tiny_path: Callable[[ShapeName], Path], shape: ShapeName, unified: bool
) -> None:
    prefix, tail, more = _tokens(90), _tokens(7, 1), _tokens(1, 2)
    with Model(tiny_path(shape)) as model:
        with _Rig(model, unified=unified) as rig:
            source, target, other, _ = rig.sequences
            rig.decode(source, prefix)
            rig.decode(source, _tokens(40, 3))
            rig.decode(other, _tokens(50, 4))
            rig.table.copy(source, target, len(prefix))
            assert np.array_equal(target.tokens.view(), prefix)
            copied = [rig.decode(target, tail), rig.decode(target, more)]
            untouched = rig.decode(source, more)
        with _Rig(model, unified=unified) as rig:
            fresh_target, fresh_source = rig.sequences[:2]
            rig.decode(fresh_target, prefix)
            fresh = [rig.decode(fresh_target, tail), rig.decode(fresh_target, more)]
            rig.decode(fresh_source, prefix)
            rig.decode(fresh_source, _tokens(40, 3))
            assert np.array_equal(untouched, rig.decode(fresh_source, more))
    assert np.array_equal(copied, fresh)


@both_layouts
def test_a_trimmed_sequence_continues_like_a_fresh_prefill(model: Model, unified: bool) -> None:
    prefix, tail = _tokens(60), _tokens(5, 1)
    with _Rig(model, unified=unified) as rig:
        trimmed, fresh = rig.sequences[:2]
        rig.decode(trimmed, prefix)
        rig.decode(trimmed, _tokens(30, 2))
        rig.table.trim(trimmed, len(prefix))
        assert rig.context.seq_end(trimmed.id) == len(trimmed.tokens) == len(prefix)
        rig.decode(fresh, prefix)
        assert np.array_equal(rig.decode(trimmed, tail), rig.decode(fresh, tail))


@both_layouts
def test_a_cleared_sequence_is_free_and_belongs_to_nobody(model: Model, unified: bool) -> None:
    with _Rig(model, unified=unified) as rig:
        for sequence in rig.table:
            rig.decode(sequence, _tokens(20))
            sequence.job, sequence.segment = "job", sequence.id
        assert rig.table.free() is None
        assert rig.table.idle() == []
        assert rig.table.cells_used == 80
        sequence = rig.sequences[2]
        sequence.segment = None
        assert rig.table.idle() == [sequence]
        rig.table.clear(sequence)
        assert rig.table.free() is sequence
        assert rig.table.idle() == []
        assert sequence.job is None
        assert rig.table.cells_used == 60
        assert rig.context.seq_end(sequence.id) == 0


def test_the_last_prompt_token_is_always_computed(model: Model) -> None:
    with _Rig(model, unified=False) as rig:
        sequence = rig.sequences[0]
        held = _tokens(20)
        rig.decode(sequence, held)
        longer = np.concatenate([held, _tokens(5, 1)])
        assert rig.table.usable_prefix(sequence, longer) == 20
        assert rig.table.usable_prefix(sequence, held) == 19
        assert rig.table.usable_prefix(sequence, held[:8]) == 7
        assert rig.table.usable_prefix(sequence, np.concatenate([held[:5], longer[:9]])) == 5


@both_layouts
@pytest.mark.parametrize("shape", ["tiny-recurrent", "tiny-hybrid"])
def test_a_model_that_cannot_trim_gives_all_or_nothing(
    tiny_path: Callable[[ShapeName], Path], shape: ShapeName, unified: bool
) -> None:
    with Model(tiny_path(shape)) as model, _Rig(model, unified=unified) as rig:
        assert model.model_class in (ModelClass.RECURRENT, ModelClass.HYBRID)
        source, target = rig.sequences[:2]
        held, tail = _tokens(20), _tokens(5, 1)
        rig.decode(source, held)
        assert rig.table.usable_prefix(source, np.concatenate([held, tail])) == 20
        assert rig.table.usable_prefix(source, held) == 0
        assert rig.table.usable_prefix(source, np.concatenate([held[:10], tail])) == 0
        rig.table.copy(source, target, 20)
        assert np.array_equal(rig.decode(target, tail), rig.decode(source, tail))
        rig.table.trim(target, 10)
        assert len(target.tokens) == rig.context.seq_end(target.id) == 0
        assert rig.table.cells_used == 25


def test_a_full_unified_pool_is_full_in_the_ledger_too(model: Model) -> None:
    prefix = _tokens(100)
    with _Rig(model, unified=True, n_ctx=256, n_seq=8) as rig:
        first, *others = rig.sequences
        rig.decode(first, prefix)
        for number, sequence in enumerate(others[:5]):
            rig.table.copy(first, sequence, len(prefix))
            assert rig.fits(sequence, _tokens(30, number))
        assert rig.table.cells_free == 256 - 100 - 5 * 30 == 6
        last = others[5]
        rig.table.copy(first, last, len(prefix))
        assert not rig.fits(last, _tokens(7))
        assert rig.fits(last, _tokens(6))
        assert rig.table.cells_free == 0
        rig.table.clear(first)
        assert rig.table.cells_free == 0
        assert not rig.fits(others[0], _tokens(1))
        rig.table.clear(others[0])
        assert rig.table.cells_free == 30
        assert rig.fits(others[1], _tokens(30))


_STEPS = st.tuples(st.sampled_from(["decode", "decode", "copy", "trim"]), _SEQS, _SEQS, st.integers(1, 90))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_STEPS, min_size=10, max_size=60))
def test_the_ledger_knows_when_llama_decode_has_no_room(
    model: Model, steps: list[tuple[str, int, int, int]]
) -> None:
    with _Rig(model, unified=True, n_ctx=256) as rig:
        for what, index, other, count in steps:
            sequence, source = rig.sequences[index], rig.sequences[other]
            if what == "trim":
                rig.table.trim(sequence, count)
            elif what == "copy" and len(source.tokens) and not len(sequence.tokens):
                rig.table.copy(source, sequence, min(count, len(source.tokens)))
            elif what == "decode":
                has_room = rig.table.cells_free >= count
                assert rig.fits(sequence, _tokens(count)) == has_room
            assert rig.context.seq_end(index) == len(sequence.tokens)
