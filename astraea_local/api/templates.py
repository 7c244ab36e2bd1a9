"""The model's own chat template: what it is given, and what becomes of its errors."""

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from astraea_local.api.errors import ApiError
from astraea_local.api.sandbox import Sandbox, TemplateFailure, TemplateFault, TemplateRefusal
from astraea_local.api.schemas import Message
from astraea_local.api.template_messages import Plain, Traits, conversation, definitions, merged
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
        self._now = now
        self._sandbox: Sandbox | None = None
        self._fault = ""
        try:
            self._sandbox = Sandbox(self.source)
        except TemplateFault as error:
            # Text can still be completed, so the model is served all the same.
            self._fault = str(error)
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
        if self._sandbox is None:
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
        if self._sandbox is None:
            raise ApiError(400, self._fault)
        try:
            return self._sandbox.render(
                {
                    **self._defaults,
                    **(extra or {}),
                    **self._specials,
                    **self._old_names(tools),
                    "messages": messages,
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

    def _old_names(self, tools: list[dict[str, Any]] | None) -> dict[str, Any]:
        """What the template of Firefunction asks for."""
        if "functools" not in self.source:
            return {}
        return {"functions": json.dumps(tools or []), "datetime": self._now().strftime("%Y-%m-%d %H:%M:%S")}
