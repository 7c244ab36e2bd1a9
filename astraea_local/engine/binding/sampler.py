"""llama.cpp's samplers and grammars."""

import ctypes
from collections.abc import Sequence
from typing import Any, Self

import llama_cpp as lib
import numpy as np

from astraea_local.engine.binding.library import BindingError, Handle, Logits, log
from astraea_local.engine.binding.model import Vocab


class Candidates:
    """The token array samplers work on; one is enough for an engine, it is refilled each time."""

    def __init__(self, n_vocab: int) -> None:
        dtype = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self.data = np.zeros(n_vocab, dtype=dtype)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self.raw = lib.llama_token_data_array()

    def fill(self, logits: Logits) -> None:
        """Takes all tokens with their raw logits."""
        self.data["id"] = self._ids
        self.data["logit"] = logits
        self._reset(len(self.data))

    def _reset(self, size: int) -> None:
        self.raw.data = ctypes.cast(self.data.ctypes.data, lib.llama_token_data_p)
        self.raw.size, self.raw.selected, self.raw.sorted = size, -1, False

    def selected(self) -> tuple[int, float]:
        """Token and logit that the last sampler chose."""
        chosen = self.raw.data[self.raw.selected]
        return int(chosen.id), float(chosen.logit)


class SamplerChain(Handle):
    """A chain of llama.cpp samplers, in the order they were added."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._pointer = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def close(self) -> None:
        if self._pointer is not None:
            lib.llama_sampler_free(self._pointer)
            self._pointer = None

    def add(self, name: str, *args: Any) -> Self:
        """Appends `llama_sampler_init_<name>(*args)`."""
        lib.llama_sampler_chain_add(self._pointer, getattr(lib, f"llama_sampler_init_{name}")(*args))
        return self

    def add_logit_bias(self, bias: dict[int, float]) -> Self:
        """Adds a constant to some tokens' logits."""
        array = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(t, b) for t, b in bias.items()))
        return self.add("logit_bias", self._vocab.n_tokens, len(bias), array)

    def add_dry(
        self, multiplier: float, base: float, allowed: int, last_n: int, breakers: Sequence[str]
    ) -> Self:
        """The DRY repetition penalty; `breakers` are strings over which no repetition is counted."""
        words = (ctypes.c_char_p * len(breakers))(*(b.encode() for b in breakers))
        return self.add("dry", self._vocab.pointer, multiplier, base, allowed, last_n, words, len(breakers))

    def apply(self, candidates: Candidates) -> None:
        lib.llama_sampler_apply(self._pointer, ctypes.byref(candidates.raw))

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._pointer, token)


class Grammar(Handle):
    """A GBNF grammar and how far the output has come in it."""

    def __init__(self, vocab: Vocab, gbnf: str) -> None:
        """Raises `BindingError` with llama.cpp's parse error."""
        log.recent.clear()
        self._pointer = lib.llama_sampler_init_grammar(vocab.pointer, gbnf.encode(), b"root")
        if not self._pointer:
            raise BindingError(f"not a valid GBNF grammar: {' '.join(log.recent) or 'no root rule'}")

    def close(self) -> None:
        if self._pointer is not None:
            lib.llama_sampler_free(self._pointer)
            self._pointer = None

    @property
    def complete(self) -> bool:
        """llama.cpp does not tell: its grammar allows the end of generation then, and nothing else."""
        return False

    def take(self, token: int) -> bool:
        """Goes on by a token, unless the grammar forbids it."""
        one = lib.llama_token_data(token, 1.0, 0.0)
        array = lib.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        lib.llama_sampler_apply(self._pointer, ctypes.byref(array))
        if not np.isfinite(one.logit):
            return False
        lib.llama_sampler_accept(self._pointer, token)
        return True

    def mask(self, candidates: Candidates) -> None:
        """Sets the logits of tokens that the grammar forbids to -inf."""
        lib.llama_sampler_apply(self._pointer, ctypes.byref(candidates.raw))
