"""Random models load, decode, and depend on their seed."""

import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from astraea_local.bench.random_model import Quant, ShapeName, write
from astraea_local.engine.binding import Batch, Context, ContextParams, Logits, Model, ModelClass
from astraea_local.model_source import resolve

_TEXT = "def walk(tree): return\n"


def _logits(model: Model) -> Logits:
    tokens = model.vocab.tokenize(_TEXT, add_special=True, parse_special=False)
    with Context(model, ContextParams(n_ctx=256, n_seq=1)) as context, Batch(len(tokens)) as batch:
        last = batch.add(tokens, 0, 0, last_logits=True)
        assert context.decode(batch) == 0
        return context.logits(last).copy()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("tiny", ModelClass.FULL),
        ("tiny-swa", ModelClass.SWA),
        ("tiny-recurrent", ModelClass.RECURRENT),
        ("tiny-hybrid", ModelClass.HYBRID),
    ],
)
@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_every_tiny_shape_loads_and_has_finite_logits(
    tmp_path: Path, shape: ShapeName, kind: ModelClass, quant: Quant
) -> None:
    with Model(write(tmp_path / "m.gguf", shape, quant=quant)) as model:
        assert model.model_class is kind
        logits = _logits(model)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first.gguf", "again.gguf", "other.gguf"))
    started = time.perf_counter()
    write(first, seed=1)
    write(again, seed=1)
    write(other, seed=2)
    assert time.perf_counter() - started < 3
    assert first.read_bytes() == again.read_bytes()
    with Model(first) as one, Model(other) as two:
        assert not np.array_equal(_logits(one), _logits(two))


def test_the_byte_tokenizer_gives_back_the_text(tmp_path: Path) -> None:
    text = "grüße, <|im_end|> 3 × 4\n"
    with Model(write(tmp_path / "m.gguf"), vocab_only=True) as model:
        vocab = model.vocab
        tokens = vocab.tokenize(text, add_special=True, parse_special=False)
        assert b"".join(vocab.piece(int(token), special=True) for token in tokens).decode() == text
        marker = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
        assert marker.tolist() == [vocab.eos]
        assert vocab.is_eog(vocab.eos)
        assert model.chat_template is not None


def test_a_tokenizer_is_copied_from_another_gguf(tmp_path: Path) -> None:
    source = write(tmp_path / "source.gguf", seed=1)
    with Model(write(tmp_path / "copy.gguf", tokenizer=source)) as copy, Model(source) as original:
        assert copy.vocab.n_tokens == original.vocab.n_tokens
        assert copy.chat_template == original.chat_template
        mine = copy.vocab.tokenize(_TEXT, add_special=True, parse_special=True)
        theirs = original.vocab.tokenize(_TEXT, add_special=True, parse_special=True)
    assert np.array_equal(mine, theirs)


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model at all, but long enough for a header\n" * 4)
    with pytest.raises(ValueError, match="not a GGUF file"):
        write(tmp_path / "m.gguf", tokenizer=text)
    bare = GGUFWriter(tmp_path / "bare.gguf", "llama")
    bare.write_header_to_file()
    bare.write_kv_data_to_file()
    bare.write_ti_data_to_file()
    bare.close()
    with pytest.raises(ValueError, match="has no tokenizer"):
        write(tmp_path / "m.gguf", tokenizer=tmp_path / "bare.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_the_demo_models_tokenizer_is_copied(tmp_path: Path) -> None:
    demo = resolve("demo")
    with Model(write(tmp_path / "m.gguf", tokenizer=demo)) as model, Model(demo, vocab_only=True) as original:
        assert model.vocab.n_tokens == original.vocab.n_tokens == 49152
        assert model.chat_template == original.chat_template
        assert np.isfinite(_logits(model)).all()
