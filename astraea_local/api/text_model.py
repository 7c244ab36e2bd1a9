"""Tokenizer, chat template and grammars in the front: a vocabulary-only load of the model."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from astraea_local.api.chat_plan import ChatPlan, ChatPlanner
from astraea_local.api.constraints import answer_schema, checked_gbnf
from astraea_local.api.errors import ApiError
from astraea_local.api.schemas import ChatRequest, Generation, Message
from astraea_local.api.templates import ChatTemplate
from astraea_local.api.tool_formats.registry import FORMATS
from astraea_local.engine.binding import Model, Tokens
from astraea_local.profile import ToolFormatName


class TextModel:
    """What the front must know of a model to turn requests into tokens."""

    def __init__(
        self, path: Path, tool_format: ToolFormatName = "auto", chat_template: str | None = None
    ) -> None:
        """`tool_format` is how the model writes tool calls; auto = as its template says.

        `chat_template` takes the place of the model's own. Raises `ModelLoadError`.
        """
        self._model = Model(path, vocab_only=True)
        vocab = self.vocab = self._model.vocab
        self._pieces: dict[int, bytes] = {}
        self._piece_lock = threading.Lock()
        self._bos_text = vocab.text(vocab.bos)
        self.name = path.stem
        self.template = ChatTemplate(
            self._model.chat_template if chat_template is None else chat_template,
            bos=self._bos_text,
            eos=vocab.text(vocab.eos),
            tool_format=None if tool_format == "auto" else FORMATS[tool_format],
        )
        self._planner = ChatPlanner(self.template, vocab, self._tokenize_rendered)
        self.generation_prompt_tokens = self._count_generation_prompt()

    def close(self) -> None:
        """Frees the model and ends the template's process."""
        self.template.close()
        self._model.close()

    def chat_plan(self, request: ChatRequest) -> ChatPlan:
        """Prompt, constraint and parser of a conversation. Raises `ApiError`."""
        return self._planner.plan(request)

    def text_prompt(self, prompt: str | list[int], param: str = "prompt") -> Tokens:
        """Tokens of a plain prompt; ids are taken as they are. Raises `ApiError` naming the field `param`."""
        if isinstance(prompt, str):
            return self.vocab.tokenize(prompt, add_special=True, parse_special=True)
        self.check_tokens(prompt, param)
        return np.array(prompt, dtype=np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes of a token, special ones included; any thread may ask."""
        piece = self._pieces.get(token)
        if piece is None:
            # The vocabulary has one buffer for all.
            with self._piece_lock:
                piece = self._pieces[token] = self.vocab.piece(token, special=True)
        return piece

    def decode(self, tokens: Sequence[int] | Tokens) -> str:
        """The text of tokens, special ones included."""
        return b"".join(self.piece(int(t)) for t in tokens).decode("utf-8", "replace")

    def check_tokens(self, tokens: list[int], param: str) -> None:
        """Raises `ApiError` when an id is not in the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.vocab.n_tokens:
                raise ApiError(
                    400, f"{param}: {token} is no token id (0 to {self.vocab.n_tokens - 1})", param=param
                )

    def gbnf(self, request: Generation) -> str | None:
        """The client's own grammar, tried out already. Raises `ApiError`."""
        return None if request.grammar is None else checked_gbnf(self.vocab, request.grammar)

    def guidance(self, request: Generation) -> str | None:
        """The grammar of a plain completion that has to be JSON. Raises `ApiError`."""
        if request.json_schema is None:
            return None
        return f"start: %json {answer_schema(request.json_schema, 'json_schema')}\n"

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
