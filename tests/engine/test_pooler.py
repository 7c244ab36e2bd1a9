"""Embeddings are llama.cpp's own, in whatever parts they were computed."""

from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from astraea_local.bench import random_model
from astraea_local.bench.random_model import SHAPES, ShapeName
from astraea_local.engine.binding import (
    BindingError,
    Context,
    ContextParams,
    Model,
    Pooler,
    Pooling,
    Tokens,
    Vector,
)
from astraea_local.engine.worker import embedding_params
from astraea_local.profile import Profile, override

POOLINGS = [Pooling.MEAN, Pooling.CLS, Pooling.LAST]
TEXT = "The sea was calm that morning, and the boats lay still. " * 5
BATCHES = [64, 512]


def model_path(folder: Path, pooling: int | None, shape: ShapeName = "tiny") -> Path:
    return random_model.write(folder / f"{shape}-{pooling}.gguf", shape, pooling=pooling)


def params(model: Model, batch: int) -> ContextParams:
    # Without flash attention the parts of an input add up to the same bits, nearly.
    return ContextParams(
        512, 1, batch, batch, type_k="f32", type_v="f32", flash_attention="off", pooling=model.pooling
    )


def tokens_of(model: Model, text: str = TEXT) -> Tokens:
    return model.vocab.tokenize(text, add_special=True, parse_special=True)


def embed(pooler: Pooler, tokens: Tokens) -> Vector:
    pooler.start(tokens)
    while (vector := pooler.advance()) is None:
        pass
    return vector


def outputs(path: Path, pooling: int, text: str = TEXT) -> Vector:
    """What the high-level binding computes of the text: shape (n_embd,), without pooling (tokens, n_embd)."""
    llama = llama_cpp.Llama(
        str(path),
        embedding=True,
        pooling_type=pooling,
        n_ctx=512,
        n_batch=512,
        n_ubatch=512,
        n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    found = np.array(llama.embed(text), np.float32)
    llama.close()
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("batch", BATCHES)
def test_embeddings_are_those_of_llama_cpp(tmp_path: Path, pooling: Pooling, batch: int) -> None:
    """Also in several batches, where llama.cpp is given the whole input at once."""
    path = model_path(tmp_path, pooling)
    with Model(path) as model, Pooler(model, params(model, batch)) as pooler:
        tokens = tokens_of(model)
        assert 64 < len(tokens) <= 512
        vector = embed(pooler, tokens)
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    theirs = outputs(path, pooling)
    assert vector == pytest.approx(theirs / np.linalg.norm(theirs), abs=1e-5)
    each = outputs(path, 0)
    assert each.shape == (len(tokens), 64)
    expected = {Pooling.MEAN: each.mean(axis=0), Pooling.CLS: each[0], Pooling.LAST: each[-1]}[pooling]
    assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


@pytest.mark.parametrize("shape", ["tiny", "tiny-swa", "tiny-recurrent", "tiny-hybrid"])
def test_an_input_leaves_nothing_behind_for_the_next(tmp_path: Path, shape: ShapeName) -> None:
    """Neither a whole one nor one that was given up midway."""
    with Model(model_path(tmp_path, Pooling.LAST, shape)) as model:
        tokens = tokens_of(model)
        with Pooler(model, params(model, 64)) as fresh:
            first = embed(fresh, tokens[:100])
        with Pooler(model, params(model, 64)) as pooler:
            other = embed(pooler, tokens[::-1])
            pooler.start(tokens)
            assert pooler.advance() is None
            again = embed(pooler, tokens[:100])
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=0.01)


@pytest.mark.parametrize(("written", "pooling"), [(None, None), (0, None), (1, 1), (2, 2), (3, 3), (4, None)])
def test_the_file_says_how_embeddings_are_made(
    tmp_path: Path, written: int | None, pooling: int | None
) -> None:
    """Neither `none` (0) nor `rank` (4) makes one vector of a text."""
    with Model(model_path(tmp_path, written)) as model:
        assert model.pooling == pooling
        assert model.n_embd == 64
        assert model.causal


def test_what_cannot_be_computed_in_parts_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens see others than those before them, an input is as long as one batch."""
    profile = override(Profile(), {"context.size": 2048, "context.ubatch": 128})
    with Model(model_path(tmp_path, 1)) as model:
        assert embedding_params(profile, model).n_ctx == 2048
    monkeypatch.setitem(SHAPES, "tiny", replace(SHAPES["tiny"], arch="llama-embed"))
    path = model_path(tmp_path, 1)
    with Model(path) as model, Pooler(model, embedding_params(profile, model)) as pooler:
        made = embedding_params(profile, model)
        assert (made.n_ctx, made.n_ubatch, model.causal) == (128, 128, False)
        theirs = outputs(path, 1, TEXT[:128])
        vector = embed(pooler, tokens_of(model, TEXT[:128]))
    assert vector == pytest.approx(theirs / np.linalg.norm(theirs), abs=1e-2)


def test_models_without_kv_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They include the encoders that most embeddings come from."""
    monkeypatch.setitem(SHAPES, "tiny", replace(SHAPES["tiny"], arch="llada"))
    path = model_path(tmp_path, 1)
    with Model(path) as model, pytest.raises(BindingError, match=f"{path.name}.*use a decoder model"):
        Context(model, ContextParams(512, 1))


def test_a_context_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A quantized V cache without flash attention is llama.cpp's own refusal."""
    with Model(model_path(tmp_path, 1)) as model, pytest.raises(BindingError, match=r"context\.size"):
        Pooler(model, ContextParams(512, 1, type_v="q8_0", flash_attention="off", pooling=model.pooling))
