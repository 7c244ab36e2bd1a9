"""The context made anew under way: whoever was at work goes on where they were."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import BindingError, ContextParams, Model, Pooling
from astraea_local.engine.elastic import Elastic, Loaded, ResizeRefused
from astraea_local.engine.embedder import Embedder
from astraea_local.engine.messages import Cancel, Embed
from astraea_local.engine.worker import context_params
from astraea_local.profile import MemorySettings, Profile, override
from astraea_local.scheduler.pressure import ElasticContext, Level
from tests.engine.harness import Harness, prompt

LAYOUTS = ["per_slot", "unified"]


class Resizable(Harness):
    """A core whose context and model can be exchanged."""

    def __init__(self, path: Path, profile: Profile) -> None:
        self.vocabulary = Model(path, vocab_only=True)
        super().__init__(Model(path), profile, self.vocabulary.vocab)
        self.loaded = Loaded(self.model, self.context)
        self.loads = 0
        self.fails = 0

        def params(model: Model, size: int, slots: int) -> ContextParams:
            if self.fails:
                self.fails -= 1
                raise BindingError("no memory for that")
            sized = override(profile, {"context.size": size, "context.slots": slots})
            return context_params(sized, model.model_class, model.n_ctx_train)

        def load() -> Model:
            self.loads += 1
            return Model(path)

        self.elastic = Elastic(self.core, self.loaded, load_model=load, params_for=params)

    def close(self) -> None:
        self.core.close()
        if not self.elastic.paused:
            self.loaded.close()
        self.vocabulary.close()


@pytest.fixture
def resizable(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Callable[..., Resizable]]:
    made: list[Resizable] = []

    def make(layout: str, shape: ShapeName = "tiny", **changes: object) -> Resizable:
        # Without flash attention the same tokens give the same bits however they were split.
        usual = {"context.size": 2048, "context.slots": 4, "kv.layout": layout, "model.threads": 1}
        exact = {"model.flash_attention": "off", **usual}
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        made.append(Resizable(tiny_path(shape), override(Profile(), {**exact, **dotted})))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _texts(h: Resizable, between: Callable[[int], None]) -> list[tuple[int, ...]]:
    """Six jobs of 40 tokens; `between` is called before each step with its number."""
    segments = [h.submit(f"job{i}", prompt(i, 60 + 20 * i), 40) for i in range(6)]
    number = 0
    while h.core.runs:
        between(number)
        if h.core.busy:
            h.core.step()
        h.messages += h.core.take_messages()
        number += 1
        assert number < 5000
    return [h.finished(segment).output for segment in segments]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [[(1024, 2)], [(512, 1), (2048, 4)], [(4096, 8), (1024, 2), (2048, 4)]])
def test_nobody_loses_a_token_when_the_context_changes(
    resizable: Callable[..., Resizable], layout: str, sizes: list[tuple[int, int]]
) -> None:
    expected = _texts(resizable(layout), lambda _step: None)
    h = resizable(layout)
    left = list(sizes)

    def change(step: int) -> None:
        if step % 15 == 10 and left:
            h.elastic.resize(*left.pop(0), "test")

    assert _texts(h, change) == expected
    assert not left
    assert h.core.residency.stats.rebuilds == len(sizes)
    assert h.core.scheduler.slots == sizes[-1][1]
    assert h.core.table.cells_total == sizes[-1][0]


def test_a_smaller_context_gives_the_memory_for_embeddings_back(resizable: Callable[..., Resizable]) -> None:
    """An input under way is begun again, and has the same vector; a larger context leaves all as it is."""
    h = resizable("per_slot")
    params = ContextParams(512, 1, 64, 64, flash_attention="off", pooling=Pooling.MEAN)
    embedder = Embedder(h.elastic, params, h.model.n_embd)

    def embed(between: Callable[[], None]) -> bytes:
        embedder.ask(Embed(1, (np.array(prompt(1, 200), np.int32),)))
        assert embedder.step() is None
        between()
        while (reply := embedder.step()) is None:
            pass
        return reply.data

    expected = embed(lambda: None)
    first = h.loaded.pooler

    def shrink() -> None:
        h.elastic.resize(1024, 2, "test")
        assert h.loaded.pooler is None

    assert embed(shrink) == expected
    second = h.loaded.pooler
    assert second is not first

    def grow() -> None:
        h.elastic.resize(2048, 4, "test")

    assert embed(grow) == expected
    assert h.loaded.pooler is second


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pause_unloads_the_model_and_loses_nothing(
    resizable: Callable[..., Resizable], layout: str
) -> None:
    expected = _texts(resizable(layout), lambda _step: None)
    h = resizable(layout)

    def pause(step: int) -> None:
        if step == 20:
            h.elastic.pause()
            assert not h.core.busy
            assert h.elastic.pause() == "the server is paused already"
            with pytest.raises(ResizeRefused, match="paused"):
                h.elastic.resize(1024, 2, "test")
        if step == 25:
            h.elastic.resume()

    assert _texts(h, pause) == expected
    assert h.loads == 1


def test_requests_that_come_while_paused_wait(resizable: Callable[..., Resizable]) -> None:
    h = resizable("per_slot")
    h.elastic.pause()
    segment = h.submit("late", prompt(1, 50), 5)
    gone = h.submit("gone", prompt(2, 50), 5)
    h.core.cancel(Cancel(gone))
    assert not h.core.busy
    h.elastic.resume()
    h.run()
    assert h.finished(segment).output_tokens == 5
    assert h.finished(gone).reason == "cancelled"


def test_a_size_that_somebody_does_not_fit_is_refused(resizable: Callable[..., Resizable]) -> None:
    h = resizable("per_slot")
    segment = h.submit("long", prompt(1, 300), 5)
    h.core.step()
    with pytest.raises(ResizeRefused, match=r"holds 30\d tokens, and each would have 256"):
        h.elastic.resize(1024, 4, "test")
    h.run()
    assert h.finished(segment).output_tokens == 5
    assert h.core.residency.stats.rebuilds == 0


def test_a_context_that_cannot_be_made_leaves_the_old_one(resizable: Callable[..., Resizable]) -> None:
    h = resizable("unified")
    segment = h.submit("a", prompt(1, 100), 20)
    h.core.step()
    h.fails = 1
    with pytest.raises(ResizeRefused, match="no memory"):
        h.elastic.resize(4096, 4, "test")
    h.run()
    assert h.finished(segment).output_tokens == 20
    assert h.core.cells == 2048


def test_a_model_that_cannot_be_loaded_again_leaves_the_server_paused(
    resizable: Callable[..., Resizable],
) -> None:
    h = resizable("unified")
    h.elastic.pause()
    h.fails = 1
    with pytest.raises(ResizeRefused, match="no memory"):
        h.elastic.resume()
    assert h.elastic.paused
    h.elastic.resume()
    assert h.ask("a", prompt(1, 50)).output_tokens == 8


@pytest.mark.parametrize("shape", ["tiny-swa", "tiny-recurrent", "tiny-hybrid"])
def test_other_models_go_on_too(resizable: Callable[..., Resizable], shape: ShapeName) -> None:
    """What cannot be kept in another context is computed again."""
    expected = _texts(resizable("per_slot", shape), lambda _step: None)
    h = resizable("per_slot", shape)

    def change(step: int) -> None:
        if step == 20:
            h.elastic.resize(1024, 2, "test")

    assert _texts(h, change) == expected


def test_the_state_says_what_is_and_what_was_asked_for(resizable: Callable[..., Resizable]) -> None:
    h = resizable("per_slot")
    h.submit("a", prompt(1, 77), 5)
    h.elastic.resize(1024, 2, "test")
    state = h.elastic.state
    assert state is not None
    assert replace(state, bytes_per_cell=0) == replace(
        state,
        size=1024,
        slots=2,
        original_size=2048,
        original_slots=4,
        bytes_per_cell=0,
        unified=False,
        longest_live_tokens=77,
        in_vram=False,
    )


@pytest.mark.parametrize(("resident", "kept"), [(True, {"a", "b"}), (False, {"a"})])
def test_the_last_flush_leaves_out_a_context_that_may_be_anything(
    resizable: Callable[..., Resizable], tmp_path: Path, *, resident: bool, kept: set[str]
) -> None:
    h = resizable("per_slot", retention__disk_path=str(tmp_path), retention__policy="lru")
    for job in ("a", "b"):
        h.ask(job, prompt(ord(job), 100))
    h.core.residency.park_now("a")
    h.elastic.flush(20, resident=resident)
    tree = h.core.residency.store.tree
    assert {job for job, part, _length in tree.jobs() if part.on_disk} == kept


def test_a_size_that_was_asked_for_is_kept(resizable: Callable[..., Resizable]) -> None:
    """It is not made good as if memory had been short; pressure that passes leads back to it."""
    h = resizable("unified")
    h.elastic.resize_for_good(1024, 2)
    watch = ElasticContext(MemorySettings(calm_s=0))
    assert h.elastic.state is not None
    assert watch.decide(0.0, Level.LOW, None, h.elastic.state) is None
    h.elastic.resize(512, 2, "pressure")
    back = watch.decide(10.0, Level.LOW, None, h.elastic.state)
    assert back is not None
    assert (back.size, back.slots) == (1024, 2)
