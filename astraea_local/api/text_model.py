"""Tokenizer, chat template and grammars in the front: a vocabulary-only load of the model."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from jsonschema.exceptions import SchemaError

from astraea_local.api.errors import ApiError
from astraea_local.api.limits import check_schema
from astraea_local.api.schemas import ChatRequest, Generation, Message
from astraea_local.api.templates import ChatTemplate
from astraea_local.api.tool_formats.base import Parser, PlainText
from astraea_local.engine.binding import BindingError, Grammar, Model, Tokens, schema_to_gbnf

# llama.cpp reads groups and rules recursively: far deeper ones overflow the stack of the whole process.
_MAX_NESTING = 5000


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """How one conversation is asked, and how its answers are read."""

    prompt: Tokens
    parser: Callable[[], Parser]
    """Makes the parser of one choice."""
    shown: tuple[int, ...] = ()
    """Special tokens that the parser needs to see."""


class TextModel:
    """What the front must know of a model to turn requests into tokens."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelLoadError`."""
        self._model = Model(path, vocab_only=True)
        vocab = self.vocab = self._model.vocab
        self._bos_text = vocab.text(vocab.bos)
        self.name = path.stem
        self.template = ChatTemplate(self._model.chat_template, bos=self._bos_text, eos=vocab.text(vocab.eos))
        self.generation_prompt_tokens = self._count_generation_prompt()

    def close(self) -> None:
        """Frees the model and ends the template's process."""
        self.template.close()
        self._model.close()

    def chat_plan(self, request: ChatRequest) -> ChatPlan:
        """Prompt and parser of a conversation. Raises `ApiError`."""
        text = self.template.render(
            request.messages, tools=request.raw_tools, extra=request.chat_template_kwargs
        )
        return ChatPlan(self._tokenize_rendered(text), PlainText)

    def text_prompt(self, prompt: str | list[int]) -> Tokens:
        """Tokens of a plain prompt; ids are taken as they are. Raises `ApiError`."""
        if isinstance(prompt, str):
            return self.vocab.tokenize(prompt, add_special=True, parse_special=True)
        self.check_tokens(prompt, "prompt")
        return np.array(prompt, dtype=np.int32)

    def decode(self, tokens: Sequence[int] | Tokens) -> str:
        """The text of tokens, special ones included."""
        return b"".join(self.vocab.piece(int(t), special=True) for t in tokens).decode("utf-8", "replace")

    def check_tokens(self, tokens: list[int], param: str) -> None:
        """Raises `ApiError` when an id is not in the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.vocab.n_tokens:
                raise ApiError(
                    400, f"{param}: {token} is no token id (0 to {self.vocab.n_tokens - 1})", param=param
                )

    def grammar(self, request: Generation) -> str | None:
        """The GBNF that the output must follow, tried out already. Raises `ApiError`."""
        param, schema = _schema_of(request)
        if schema is None:
            if request.grammar is None:
                return None
            return self._checked(request.grammar, "grammar")
        if schema is False:
            text = f"{param}: the schema false allows no answer"
            raise ApiError(400, text, param=param, code="invalid_json_schema")
        if schema is True:
            schema = {}
        check_schema(schema, param)
        try:
            jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(
                schema
            )
        except RecursionError as error:
            text = f"{param}: the schema is nested too deeply"
            raise ApiError(400, text, param=param, code="invalid_json_schema") from error
        except SchemaError as error:
            where = ".".join(str(p) for p in error.absolute_path)
            text = f"{param}: not a valid JSON schema{f' at {where}' if where else ''}: {error.message}"
            raise ApiError(400, text, param=param, code="invalid_json_schema") from error
        try:
            gbnf = schema_to_gbnf(json.dumps(schema))
        except BindingError as error:
            raise ApiError(400, f"{param}: {error}", param=param, code="invalid_json_schema") from error
        return self._checked(gbnf, param)

    def _checked(self, gbnf: str, param: str) -> str:
        if _nesting(gbnf) > _MAX_NESTING:
            text = f"{param}: nested too deeply; a maxLength or maxItems is perhaps too large"
            raise ApiError(400, text, param=param, code="invalid_grammar")
        try:
            Grammar(self.vocab, gbnf).close()
        except UnicodeEncodeError as error:
            text = f"{param}: half of a surrogate pair is not a character"
            raise ApiError(400, text, param=param, code="invalid_grammar") from error
        except BindingError as error:
            raise ApiError(400, f"{param}: {error}", param=param, code="invalid_grammar") from error
        return gbnf

    def _tokenize_rendered(self, text: str) -> Tokens:
        # A template that writes BOS itself must not get a second one.
        if self.vocab.add_bos and self._bos_text and text.startswith(self._bos_text):
            text = text.removeprefix(self._bos_text)
        return self.vocab.tokenize(text, add_special=True, parse_special=True)

    def _count_generation_prompt(self) -> int:
        """Tokens that the template adds at the end to make the model answer."""
        hello = [Message(role="user", content="hello")]
        try:
            with_it = self.template.render(hello)
            without = self.template.render(hello, add_generation_prompt=False)
        except ApiError:
            return 0
        return len(self._tokenize_rendered(with_it)) - len(self._tokenize_rendered(without))


def _schema_of(request: Generation) -> tuple[str, Any]:
    if isinstance(request, ChatRequest) and request.response_format is not None:
        form = request.response_format
        if form.type == "json_object":
            return "response_format", {"type": "object"}
        if form.json_schema is not None:
            return "response_format.json_schema.schema", form.json_schema.json_schema
    return "json_schema", request.json_schema


def _nesting(gbnf: str) -> int:
    """A bound on how deeply a grammar's groups, or its rules in one another, can be nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[()]", gbnf):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    return max(deepest, gbnf.count("::="))
