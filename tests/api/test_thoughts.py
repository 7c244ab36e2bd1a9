"""Thoughts in every dialect, by a server whose template opens them in the prompt."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import Message
from openai import OpenAI
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.api.conftest import profile
from tests.conftest import Server, StartServer
from tests.test_cli import run

pytestmark = pytest.mark.e2e

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)
THOUGHT, ANSWER = "The moon pulls.", "At noon."
ASKED = "When does the tide turn at the lighthouse on the northern island, and why?"


@pytest.fixture(scope="module")
def thinker(
    start_server: StartServer, fast_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("thinker")
    (folder / "template.jinja").write_text(TEMPLATE)
    template = f'chat_template = "{folder / "template.jinja"}"\n'
    server = start_server("--profile", profile(folder, fast_path, of_model=template))
    yield server
    server.stop()


def says(server: Server, text: str) -> dict[str, Any]:
    """The fields that make the model say this, in the tokens in which it comes back."""
    tokens = httpx.post(f"{server.url}/tokenize", json={"content": text}, timeout=30).json()["tokens"]
    bias = {str(token): 100 for token in tokens}
    return {"grammar": f"root ::= {json.dumps(text)}", "logit_bias": bias, "temperature": 0}


@pytest.fixture(scope="module")
def thinks(thinker: Server) -> dict[str, Any]:
    """The fields that make the model think before it answers."""
    return says(thinker, f"{THOUGHT}\n</think>\n\n{ANSWER}")


@pytest.fixture(scope="module")
def openai(thinker: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=thinker.base_url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic(thinker: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=thinker.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def told(answer: Response) -> list[tuple[str, str]]:
    """Types and texts of the output."""
    return [(item.type, item.content[0].text) for item in answer.output]  # type: ignore[union-attr,index]


def test_responses_have_items_of_reasoning(openai: OpenAI, thinks: dict[str, Any]) -> None:
    whole = openai.responses.create(model="fast", input=ASKED, extra_body=thinks)
    assert told(whole) == [("reasoning", THOUGHT), ("message", ANSWER)]
    assert whole.usage is not None
    thought = whole.usage.output_tokens_details.reasoning_tokens
    assert 0 < thought < whole.usage.output_tokens
    with openai.responses.stream(model="fast", input=ASKED, extra_body=thinks) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert told(final) == told(whole)
    kinds = [event.type for event in events]
    # The thought is over before the text begins.
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    pieces = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(pieces) == THOUGHT
    assert len(pieces) > 1


@pytest.mark.parametrize("stored", [True, False])
def test_a_response_that_is_gone_on_from_brings_its_thoughts(
    openai: OpenAI, thinks: dict[str, Any], stored: bool
) -> None:
    # What another conversation left in KV would count as well.
    asked, more = f"{ASKED} {stored}", [{"role": "user", "content": "And then?"}]
    settings: dict[str, Any] = {"include": ["reasoning.encrypted_content"], "store": stored}
    first = openai.responses.create(model="fast", input=asked, extra_body=thinks, **settings)
    if stored:
        settings["previous_response_id"] = first.id
        given: Any = more
    else:
        # Clients without storage send back the sealed form alone.
        reasoning, message = (item.model_dump(exclude_none=True) for item in first.output)
        del reasoning["content"]
        given = [{"role": "user", "content": asked}, reasoning, message, *more]
    second = openai.responses.create(model="fast", input=given, extra_body=thinks, **settings)
    assert first.usage is not None
    assert second.usage is not None
    known = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens_details.cached_tokens >= known - 2


def test_messages_have_blocks_of_thinking(anthropic: Anthropic, thinks: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"model": "fast", "max_tokens": 64, "extra_body": thinks}
    said: list[Any] = [{"role": "user", "content": f"{ASKED} Say it."}]
    whole = anthropic.messages.create(messages=said, **settings)
    assert isinstance(whole, Message)
    thinking, text = whole.content
    assert thinking.type == "thinking"
    assert text.type == "text"
    assert (thinking.thinking, text.text) == (THOUGHT, ANSWER)
    # The client drops blocks without one.
    assert thinking.signature
    with anthropic.messages.stream(messages=said, **settings) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert kinds.count("thinking") > 1
    assert kinds.index("signature") < kinds.index("text")
    said += [{"role": "assistant", "content": whole.content}, {"role": "user", "content": "And then?"}]
    usage = anthropic.messages.create(messages=said, **settings).usage
    known = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) + whole.usage.output_tokens
    assert (usage.cache_read_input_tokens or 0) >= known - 2


def test_thinking_can_be_disabled(anthropic: Anthropic, thinker: Server) -> None:
    settings: dict[str, Any] = {"thinking": {"type": "disabled"}, "extra_body": says(thinker, ANSWER)}
    said: list[Any] = [{"role": "user", "content": ASKED}]
    answer = anthropic.messages.create(model="fast", messages=said, max_tokens=64, **settings)
    (text,) = answer.content
    assert text.type == "text"
    assert text.text == ANSWER


def test_chat_completions_have_reasoning_content(openai: OpenAI, thinks: dict[str, Any]) -> None:
    messages: Any = [{"role": "user", "content": ASKED}]
    answer = openai.chat.completions.create(model="fast", messages=messages, extra_body=thinks)
    assert isinstance(answer, ChatCompletion)
    message = answer.choices[0].message
    assert (message.content, message.model_extra) == (ANSWER, {"reasoning_content": THOUGHT})


def test_a_template_that_is_not_there_stops_the_start(fast_path: Path, tmp_path: Path) -> None:
    file = profile(tmp_path, fast_path, of_model='chat_template = "none.jinja"\n')
    ended = run("serve", "--no-tui", "--port", "0", "--profile", file)
    assert ended.returncode == 2
    assert "none.jinja: cannot read the chat template: No such file" in ended.stderr.splitlines()[-1]
