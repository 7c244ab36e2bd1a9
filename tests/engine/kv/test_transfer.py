"""States taken out of a context and put back: the next logits must be the same to the last bit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Model
from astraea_local.engine.kv.parts import path
from astraea_local.engine.kv.transfer import form_of
from tests.engine.kv.conversation import Rig, rig, tokens

NEXT = tokens(9, 1)
LAYOUTS = [False, True]
FORMS = [("f16", "on"), ("q8_0", "on"), ("f16", "off")]


@pytest.fixture(scope="module")
def tiny(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Model]:
    with Model(tiny_path("tiny")) as model:
        yield model


@pytest.fixture(
    params=[(u, *f) for u in LAYOUTS for f in FORMS],
    ids=lambda p: f"{'pool' if p[0] else 'slots'}-{p[1]}-{p[2]}",
)
def made(request: pytest.FixtureRequest, tiny: Model) -> Iterator[Rig]:
    unified, kv_type, flash = request.param
    found = rig(tiny, unified=unified, kv_type=kv_type, flash=flash)
    yield found
    found.close()


def test_a_whole_state_comes_back_exactly(made: Rig) -> None:
    talk = tokens(1, 200)
    made.compute(2, talk)
    part = made.save(2, talk, 0, None)
    expected = made.compute(2, NEXT)
    made.context.clear()
    assert made.transfer.load(1, path(part, 200))
    assert np.array_equal(made.compute(1, NEXT), expected)


def test_increments_come_back_exactly(made: Rig) -> None:
    """Three snapshots of a growing conversation, each with its new tokens only."""
    talk = tokens(1, 200)
    part = None
    for start, end in ((0, 90), (90, 91), (91, 200)):
        made.compute(0, talk[start:end])
        part = made.save(0, talk[:end], start, part)
        assert part.size < 400 * (end - start) + 2000
    assert part is not None
    expected = made.compute(0, NEXT)
    made.context.clear()
    assert made.transfer.load(3, path(part, 200))
    assert np.array_equal(made.compute(3, NEXT), expected)


def test_conversations_share_what_they_begin_with(made: Rig) -> None:
    """The second one stores its own end only, which hangs from the middle of the first one's part."""
    first, second = tokens(1, 150), np.concatenate([tokens(1, 150)[:100], tokens(2, 60)])
    made.compute(0, first)
    trunk = made.save(0, first, 0, None)
    # The common tokens are computed once: another split of them would differ in rounding.
    if made.unified:
        made.context.seq_cp(0, 1, 0, 100)
    else:
        made.context.seq_cp(0, 1)
        made.context.seq_rm(1, 100, -1)
    made.compute(1, second[100:])
    branch = made.save(1, second, 100, trunk)
    expected = made.compute(1, NEXT)
    made.context.clear()
    assert made.transfer.load(2, path(branch, 160))
    assert made.context.seq_end(2) == 160
    assert np.array_equal(made.compute(2, NEXT), expected)


def test_a_prefix_of_a_state_can_be_restored(made: Rig) -> None:
    talk = tokens(1, 200)
    made.compute(0, talk[:120])
    expected = made.compute(0, NEXT)
    made.context.seq_rm(0, 120, -1)
    made.compute(0, talk[120:])
    part = made.save(0, talk, 0, None)
    made.context.clear()
    assert made.transfer.load(0, path(part, 120))
    assert np.array_equal(made.compute(0, NEXT), expected)


def test_saving_changes_nothing(made: Rig) -> None:
    talk = tokens(1, 100)
    made.compute(0, talk)
    made.compute(1, tokens(2, 50))
    part = made.save(0, talk, 0, None)
    assert [made.context.seq_end(seq) for seq in range(4)] == [100, 50, 0, 0]
    expected = made.compute(0, NEXT)
    made.context.seq_rm(0)
    assert made.transfer.load(0, path(part, 100))
    assert np.array_equal(made.compute(0, NEXT), expected)
    assert made.context.seq_end(1) == 50


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_another_layout_and_other_slots_take_the_same_parts(tiny: Model, before: bool, after: bool) -> None:
    """After a resize, or in the next server's context."""
    talk = tokens(1, 200)
    old, new = rig(tiny, unified=before), rig(tiny, unified=after, slots=2)
    old.compute(0, talk[:120])
    first = old.save(0, talk[:120], 0, None)
    old.compute(0, talk[120:])
    last = old.save(0, talk, 120, first)
    expected = old.compute(0, NEXT)
    assert new.transfer.load(1, path(last, 200))
    assert np.array_equal(new.compute(1, NEXT), expected)
    # And back again, now that the buffers carry the other context's head.
    old.context.clear()
    assert old.transfer.load(2, path(last, 200))
    assert np.array_equal(old.compute(2, NEXT), expected)
    old.close()
    new.close()


def test_a_damaged_state_is_refused_and_leaves_the_sequence_empty(made: Rig) -> None:
    talk = tokens(1, 100)
    made.compute(0, talk)
    part = made.save(0, talk, 0, None)
    assert part.buffer is not None
    part.buffer[part.offset : part.offset + 4] = 0
    made.context.clear()
    assert not made.transfer.load(1, path(part, 100))
    assert made.context.seq_end(1) == 0


@pytest.mark.parametrize("unified", LAYOUTS)
def test_a_shifted_state_goes_on_exactly(tiny: Model, unified: bool) -> None:
    made = rig(tiny, unified=unified)
    made.compute(0, tokens(3, 100))
    made.compute(1, tokens(1, 100))
    expected = made.compute(1, NEXT)
    made.context.seq_rm(1, 100, -1)
    made.context.seq_rm(0)
    assert made.transfer.shift(1, 100)
    assert np.array_equal(made.compute(1, NEXT), expected)
    made.close()


@pytest.mark.parametrize("unified", LAYOUTS)
@pytest.mark.parametrize("shape", ["tiny-swa", "tiny-recurrent", "tiny-hybrid"])
def test_other_models_are_kept_whole_and_exactly(
    tiny_path: Callable[[ShapeName], Path], shape: ShapeName, unified: bool
) -> None:
    """Their states are never taken apart; as a whole they come back to the bit."""
    talk = tokens(1, 200)
    with Model(tiny_path(shape)) as model:
        made = rig(model, unified=unified, rows=False)
        made.compute(0, talk)
        part = made.save(0, talk, 0, None)
        expected = made.compute(0, NEXT)
        made.context.clear()
        assert made.transfer.load(1, path(part, 200))
        assert np.array_equal(made.compute(1, NEXT), expected)
        made.close()


@pytest.mark.parametrize("shape", ["tiny", "tiny-swa", "tiny-recurrent", "tiny-hybrid"])
@pytest.mark.parametrize("unified", LAYOUTS)
def test_the_form_is_seen_not_assumed(
    tiny_path: Callable[[ShapeName], Path], shape: ShapeName, unified: bool
) -> None:
    with Model(tiny_path(shape)) as model:
        for flash in ("on", "off"):
            made = rig(model, unified=unified, flash=flash)
            made.compute(0, tokens(1, 20))
            form = form_of(made.context, 0)
            assert form.by_rows == (shape == "tiny")
            assert form.v_transposed == (shape == "tiny" and flash == "off")
            made.close()
