"""The model's own chat template, rendered in Jinja's sandbox."""

import functools
import json
from collections.abc import Callable
from datetime import datetime
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from astraea_local.api.errors import ApiError
from astraea_local.api.messages import Plain, Traits, conversation, definitions, merged
from astraea_local.api.schemas import Message
from astraea_local.api.tool_formats.base import ToolFormat
from astraea_local.api.tool_formats.registry import format_of
from astraea_local.api.traits import find_traits

# What a GGUF without a template gets: ChatML, the most common form.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# With these a template repeats earlier thoughts, so that the next prompt begins like the last one.
_KEEP_THOUGHTS = {
    "preserve_thinking": True,
    "keep_past_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "drop_thinking": False,
}
_FAULTS = (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RecursionError)


class ChatTemplate:
    """Turns messages into the text that the model was trained on."""

    def __init__(
        self,
        source: str | None,
        *,
        bos: str,
        eos: str,
        tool_format: ToolFormat | None = None,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """`source` is Jinja, None means ChatML; `bos` and `eos` are the texts of those tokens.

        Without `tool_format` the source tells how the model writes tool calls.
        """
        self.source = source or _CHATML
        self.tool_format = tool_format or format_of(self.source)
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._now = now
        self._template: jinja2.Template | None = None
        self._fault = ""
        try:
            self._template = environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            # Text can still be completed, so the model is served all the same.
            self._fault = f"line {error.lineno}: {error.message}"
        self._specials = {"bos_token": bos, "eos_token": eos}
        self._defaults = {name: value for name, value in _KEEP_THOUGHTS.items() if name in self.source}

    @functools.cached_property
    def traits(self) -> Traits:
        """What the template can show, found by trying."""
        return find_traits(self._run, self.source)

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        extra: dict[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text. Raises `ApiError` when the template refuses the conversation."""
        if self._template is None:
            text = f"messages: the model's chat template is not valid ({self._fault}): use /v1/completions"
            raise ApiError(400, text, param="messages", code="invalid_chat_template")
        plain = conversation(messages, tools, self.traits, self.tool_format)
        shown = definitions(tools, self.traits)
        try:
            return self._run(plain, shown, extra, add_generation_prompt)
        except ApiError:
            # Many templates want users and assistants to alternate.
            simpler = merged(plain)
            if simpler == plain:
                raise
            return self._run(simpler, shown, extra, add_generation_prompt)

    def _run(
        self,
        messages: list[Plain],
        tools: list[dict[str, Any]] | None,
        extra: dict[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        if self._template is None:
            raise ApiError(400, self._fault)
        try:
            return self._template.render(
                {
                    **self._defaults,
                    **(extra or {}),
                    **self._specials,
                    **self._old_names(tools),
                    # A template that takes from the list takes from its own.
                    "messages": list(messages),
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise ApiError(
                400, f"messages: the model's chat template refuses them: {error.message}", param="messages"
            ) from error
        except _FAULTS as error:
            raise ApiError(
                400, f"messages: the model's chat template fails on them: {error}", param="messages"
            ) from error

    def _old_names(self, tools: list[dict[str, Any]] | None) -> dict[str, Any]:
        """What the template of Firefunction asks for."""
        if "functools" not in self.source:
            return {}
        return {"functions": json.dumps(tools or []), "datetime": self._now().strftime("%Y-%m-%d %H:%M:%S")}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Nothing of the input can be changed, but lists may be: some templates collect in lists of their own."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, list) and attr in ("append", "pop"):
            return True
        return super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what is to be trained on; here its content is all."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: Any) -> list[Any]:
    """What filters such as `map` return."""
    if isinstance(value, GeneratorType | map | filter):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)
