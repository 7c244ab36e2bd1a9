"""Grammars that output must follow, by llguidance: JSON schemas, tool calls, and text between them."""

import ctypes
import json
import threading
from collections import OrderedDict
from typing import Any

import llama_cpp as lib
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from astraea_local.engine.binding.library import BindingError
from astraea_local.engine.binding.model import Vocab
from astraea_local.engine.binding.sampler import Candidates

# Agents send the same tools with every request: what was compiled for them is copied, in microseconds.
_KEPT = 32
# One space, or one line break and its indentation: small models would go on with white space for ever.
_JSON_STYLE = {"whitespace_flexible": True, "whitespace_pattern": r" |\n {0,32}"}


def json_grammar(schema: Any, *, lenient: bool = False) -> str:
    """A schema as llguidance reads it after `%json`; `lenient` ignores keywords that it does not know."""
    style = _JSON_STYLE | ({"lenient": True, "coerce_one_of": True} if lenient else {})
    options = {"x-guidance": style}
    return json.dumps({**schema, **options} if isinstance(schema, dict) else {"allOf": [schema], **options})


def schema_fault(grammar: str) -> str | None:
    """What of a `json_grammar` llguidance cannot enforce, None if it can enforce all of it."""
    is_error, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(grammar))
    return messages[0] if is_error else None


class Guide:
    """A grammar and how far one output has come in it."""

    def __init__(self, matcher: LLMatcher, n_tokens: int) -> None:
        self._matcher = matcher
        self._n_tokens = n_tokens

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def take(self, token: int) -> bool:
        """Goes on by a token, unless the grammar forbids it."""
        return int(self._matcher.try_consume_tokens([token])) == 1

    def mask(self, candidates: Candidates) -> None:
        """Sets the logits of tokens that the grammar forbids to -inf."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._n_tokens, bitorder="little")
        candidates.data["logit"][allowed == 0] = -np.inf


class Guides:
    """Compiles grammars for one vocabulary and remembers the last ones; may be shared by threads."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def warm_up(self) -> LLTokenizer:
        """Prepares the vocabulary, which takes a second for large ones; else the first grammar does it."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer(self._vocab)
            return self._tokenizer

    def open(self, grammar: str) -> Guide:
        """A Lark grammar at its start. Raises `BindingError`."""
        tokenizer = self.warm_up()
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = LLMatcher(tokenizer, grammar, log_level=0)
                if matcher.is_error():
                    raise BindingError(f"not a valid grammar: {matcher.get_error()}")
                self._compiled[grammar] = matcher
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return Guide(matcher.deep_copy(), self._vocab.n_tokens)


def _tokenizer(shared: Vocab) -> LLTokenizer:
    # Of its own, because a vocabulary's buffer serves one thread.
    vocab = Vocab(shared.pointer)
    tokens = []
    for token in range(vocab.n_tokens):
        piece = vocab.piece(token, special=True)
        # llguidance's mark of a token that no text spells; user-defined ones are text to llama.cpp too.
        tokens.append(b"\xff" + piece if vocab.is_control(token) else piece)
    ends = [t for t in range(vocab.n_tokens) if vocab.is_eog(t)]
    tokenizer: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=tokens,
        vocab_ptr=vocab.pointer,
        tokenize_fptr=ctypes.cast(lib.llama_tokenize, ctypes.c_void_p).value,
        eos_token=ends or vocab.eos,
    )
    return tokenizer
