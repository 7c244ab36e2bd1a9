"""The engine says what `llama_cpp.Llama` says."""

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest

from astraea_local.engine.binding import Model
from astraea_local.profile import Profile, override
from tests.engine.harness import Harness

_PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that reverses a list.",
    "List three uses of a brick.",
    "Translate to German: good morning, my friend.",
    "Explain in one paragraph why the sky is blue, and mention Rayleigh scattering.",
)
_TOKENS = 48


@pytest.fixture(scope="module")
def reference(demo_path: Path) -> Iterator[llama_cpp.Llama]:
    """The binding's own high-level class with the same settings."""
    llama = llama_cpp.Llama(
        str(demo_path), n_ctx=2048, n_threads=2, n_threads_batch=2, flash_attn=True, verbose=False
    )
    yield llama
    llama.close()


@pytest.mark.parametrize("text", _PROMPTS)
def test_greedy_output_is_the_same_token_by_token(
    demo_model: Model, reference: llama_cpp.Llama, text: str
) -> None:
    """Same prompt, same settings, alone in the engine."""
    profile = override(
        Profile(),
        {"context.size": 2048, "context.slots": 1, "model.threads": 2, "model.flash_attention": "on"},
    )
    h = Harness(demo_model, profile)
    prompt = h.tokens(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    ours = h.ask("job", prompt, _TOKENS).output
    h.close()
    reference.reset()
    theirs = []
    for token in reference.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1):
        theirs.append(token)
        if len(theirs) == _TOKENS:
            break
    assert list(ours) == theirs
