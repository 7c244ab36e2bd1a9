"""The model's own chat template: what it is given, and what becomes of its errors."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from astraea_local.api.errors import ApiError
from astraea_local.api.sandbox import Sandbox, TemplateFailure, TemplateFault, TemplateRefusal
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
        self._now = now
        self._sandbox: Sandbox | None = None
        self._fault = ""
        try:
            self._sandbox = Sandbox(source or _CHATML)
        except TemplateFault as error:
            # Text can still be completed, so the model is served all the same.
            self._fault = str(error)
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
        if self._sandbox is None:
            text = f"messages: the model's chat template is not valid ({self._fault}): use /v1/completions"
            raise ApiError(400, text, param="messages", code="invalid_chat_template")
        try:
            return self._sandbox.render(
                {
                    **(extra or {}),
                    **self._specials,
                    "messages": [self._plain(m) for m in messages],
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                },
                self._now(),
            )
        except TemplateRefusal as error:
            raise ApiError(
                400, f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        except (TemplateFailure, TemplateFault) as error:
            raise ApiError(
                400, f"messages: the model's chat template fails on them: {error}", param="messages"
            ) from error

    def close(self) -> None:
        """Ends the process that renders."""
        if self._sandbox is not None:
            self._sandbox.close()

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
