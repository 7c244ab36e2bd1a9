"""The model's own chat template, rendered in Jinja's sandbox."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from astraea_local.api.errors import ApiError
from astraea_local.api.schemas import Message

# What a GGUF without a template gets: ChatML, the most common form.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatTemplate:
    """Turns messages into the text that the model was trained on."""

    def __init__(
        self,
        source: str | None,
        *,
        bos: str,
        eos: str,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """`source` is Jinja, None means ChatML; `bos` and `eos` are the texts of those tokens."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._template: jinja2.Template | None = None
        self._fault = ""
        try:
            self._template = environment.from_string(source or _CHATML)
        except jinja2.TemplateSyntaxError as error:
            # Text can still be completed, so the model is served all the same.
            self._fault = f"line {error.lineno}: {error.message}"
        self._knows_calls = "tool_calls" in (source or "")
        self._specials = {"bos_token": bos, "eos_token": eos}

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
        try:
            return self._template.render(
                {
                    **(extra or {}),
                    **self._specials,
                    "messages": [self._plain(m) for m in messages],
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise ApiError(
                400, f"messages: the model's chat template refuses them: {error.message}", param="messages"
            ) from error
        except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            raise ApiError(
                400, f"messages: the model's chat template fails on them: {error}", param="messages"
            ) from error

    def _plain(self, message: Message) -> dict[str, Any]:
        """The message as templates expect it: content is always text."""
        plain: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.role == "developer":
            plain["role"] = "system"
        for key in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(message, key)) is not None:
                plain[key] = value
        if message.tool_calls:
            if self._knows_calls:
                plain["tool_calls"] = message.tool_calls
            else:
                calls = [json.dumps(c.get("function", c), ensure_ascii=False) for c in message.tool_calls]
                plain["content"] = "\n".join(filter(None, [plain["content"], *calls]))
        return plain


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)
