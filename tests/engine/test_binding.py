"""The wrapper over llama.cpp: errors that a user can act on, and views that really reach it."""

from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine import binding
from astraea_local.engine.binding import (
    Batch,
    BindingError,
    Candidates,
    Context,
    ContextParams,
    Device,
    Grammar,
    Guides,
    Model,
    ModelClass,
    ModelLoadError,
    build,
)


def test_a_missing_symbol_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the binding is refused at the start, not in the middle of a step."""
    monkeypatch.delattr(llama_cpp, "llama_memory_seq_cp")
    with pytest.raises(BindingError, match=r"llama_memory_seq_cp.*llama-cpp-python==0\.3\.36"):
        binding.start_backend()


def test_files_that_are_no_models(tmp_path: Path, demo_path: Path) -> None:
    """Missing, a folder, something else, cut off in the header, cut off in the data."""
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 not a model")
    header, data = tmp_path / "header.gguf", tmp_path / "data.gguf"
    with demo_path.open("rb") as file:
        start = file.read(4 << 20)
    header.write_bytes(start[:3000])
    data.write_bytes(start)
    for path, words in (
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path, "is a folder"),
        (other, "not a GGUF file"),
        (header, "cannot load this model"),
        (data, "corrupted or incomplete"),
    ):
        with pytest.raises(ModelLoadError, match=words):
            Model(path)


def test_the_class_of_a_model_is_asked_from_it(tiny_path: Callable[[ShapeName], Path]) -> None:
    """It decides what may be done with a model's KV."""
    expected: dict[ShapeName, ModelClass] = {
        "tiny": ModelClass.FULL,
        "tiny-swa": ModelClass.SWA,
        "tiny-recurrent": ModelClass.RECURRENT,
        "tiny-hybrid": ModelClass.HYBRID,
    }
    for shape, model_class in expected.items():
        with Model(tiny_path(shape)) as model:
            assert model.model_class is model_class
            assert model.model_class.can_trim == (model_class in (ModelClass.FULL, ModelClass.SWA))


def test_progress_is_reported_to_its_end(tiny_path: Callable[[ShapeName], Path]) -> None:
    """Fractions rise to 1."""
    seen: list[float] = []
    Model(tiny_path("tiny"), on_progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_context_that_cannot_be_made_names_the_field(tiny_path: Callable[[ShapeName], Path]) -> None:
    """A quantized V cache without flash attention is llama.cpp's own refusal."""
    with Model(tiny_path("tiny")) as model, pytest.raises(BindingError, match=r"context\.size"):
        Context(model, ContextParams(n_ctx=256, n_seq=1, type_v="q8_0", flash_attention="off"))


@pytest.mark.parametrize("unified", [False, True])
def test_a_batch_reaches_the_right_sequences(tiny_path: Callable[[ShapeName], Path], unified: bool) -> None:
    """Two sequences in one batch get the logits that each gets alone."""
    rows = [np.arange(10, 10 + n, dtype=np.int32) for n in (7, 12)]
    with Model(tiny_path("tiny")) as model:
        alone = []
        for tokens in rows:
            with (
                Context(model, ContextParams(n_ctx=512, n_seq=2, unified=unified)) as context,
                Batch(64) as batch,
            ):
                index = batch.add(tokens, 0, 0, last_logits=True)
                assert context.decode(batch) == 0
                alone.append(context.logits(index).copy())
        with (
            Context(model, ContextParams(n_ctx=512, n_seq=2, unified=unified)) as context,
            Batch(64) as batch,
        ):
            indices = [batch.add(tokens, 0, seq, last_logits=True) for seq, tokens in enumerate(rows)]
            assert context.decode(batch) == 0
            for seq, index in enumerate(indices):
                np.testing.assert_allclose(context.logits(index), alone[seq], rtol=1e-3, atol=1e-3)
                assert context.seq_end(seq) == len(rows[seq])


def test_a_bad_grammar_is_an_error(demo_model: Model) -> None:
    """It does not end the process."""
    with pytest.raises(BindingError, match="GBNF"):
        Grammar(demo_model.vocab, "root ::= ((")
    with pytest.raises(BindingError, match="GBNF"):
        Grammar(demo_model.vocab, 'other ::= "x"')
    with pytest.raises(BindingError, match="not a valid grammar"):
        Guides(demo_model.vocab).open("start: missing")


def test_a_guide_follows_its_grammar(demo_model: Model) -> None:
    vocab = demo_model.vocab
    guides = Guides(vocab)
    end = int(vocab.eos)
    guide = guides.open(f'start: "ab" <[{end}]> "c"')
    a, b, c = (int(vocab.tokenize(t, add_special=False, parse_special=False)[0]) for t in "abc")
    candidates = Candidates(vocab.n_tokens)
    candidates.fill(np.zeros(vocab.n_tokens, dtype=np.float32))
    guide.mask(candidates)
    allowed = np.flatnonzero(np.isfinite(candidates.data["logit"]))
    assert b"ab" in {vocab.piece(int(t), special=True) for t in allowed} <= {b"a", b"ab"}
    assert not guide.take(b)
    assert [guide.take(t) for t in (a, b, end)] == [True, True, True]
    assert guide.take(c)
    assert guide.complete
    # What one output did is nothing to the next.
    again = guides.open(f'start: "ab" <[{end}]> "c"')
    assert again.take(a)


def test_text_survives_the_tokenizer(demo_model: Model) -> None:
    """Pieces of any text give it back, special tokens as text too."""
    vocab = demo_model.vocab
    for text in ("plain words", "日本語 🙂 é\n\ttabs", "<|im_start|>user\nhi<|im_end|>"):
        tokens = vocab.tokenize(text, add_special=False, parse_special=True)
        assert b"".join(vocab.piece(int(t), special=True) for t in tokens).decode() == text
    special = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert [vocab.piece(int(t), special=False) for t in special] == [b""]
    assert vocab.is_eog(int(special[0]))


def test_devices_and_their_memory_agree() -> None:
    """What the structure says of each device is what the single questions say."""
    for device in binding.build_info().devices:
        assert device.name
        assert device.is_gpu or not device.integrated
        assert binding.device_memory(device.name)[1] == device.total
    assert binding.device_memory("no such device") == (0, 0)


def test_a_model_is_put_on_discrete_gpus_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which GPUs count follows from the profile's settings; integrated ones only where they are alone."""

    def device(name: str, *, is_gpu: bool = True, integrated: bool = False) -> Device:
        return Device(name, name, is_gpu=is_gpu, free=1, total=2, integrated=integrated)

    def used(*settings: object) -> list[str]:
        return [found.name for found in binding.used_gpus(*settings)]  # type: ignore[arg-type]

    devices = [device("igpu", integrated=True), device("a"), device("b"), device("cpu", is_gpu=False)]
    monkeypatch.setattr(build, "_devices", lambda: devices)
    assert used(-1, "layer", 0) == ["a", "b"]
    assert used(-1, "none", 1) == ["b"]
    assert used(10, "none", 2) == []
    assert used(0, "layer", 0) == []
    monkeypatch.setattr(build, "_devices", lambda: [devices[0], devices[3]])
    assert used(-1, "none", 0) == ["igpu"]
