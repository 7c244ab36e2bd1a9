"""`/v1/messages` of a real server, spoken to by the official client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anthropic import Anthropic, APIStatusError, BadRequestError
from anthropic.types import Message

from tests.conftest import Server

pytestmark = pytest.mark.e2e

SEA: Any = [{"role": "user", "content": "Write one sentence about the sea."}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def ask(client: Anthropic, messages: Any = SEA, **settings: Any) -> Message:
    made: dict[str, Any] = {"extra_body": {"temperature": 0}, "max_tokens": 12} | settings
    answer = client.messages.create(model="demo", messages=messages, **made)
    assert isinstance(answer, Message)
    return answer


def text(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_stream_says_the_same_as_a_whole_answer(client: Anthropic) -> None:
    whole = ask(client, max_tokens=64)
    with client.messages.stream(
        model="demo", messages=SEA, max_tokens=64, extra_body={"temperature": 0}
    ) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text(final) == text(whole) != ""
    assert (final.stop_reason, whole.stop_reason) == ("end_turn", "end_turn")
    assert (final.type, final.role, final.model) == ("message", "assistant", whole.model)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_events_have_names_in_order(server: Server) -> None:
    body = {"messages": SEA, "stream": True, "max_tokens": 3, "ignore_eos": True}
    answer = httpx.post(f"{server.base_url}/messages", json=body, timeout=60)
    lines = answer.text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    names = [line[7:] for line in lines if line.startswith("event: ")]
    assert [event["type"] for event in events] == names
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert answer.headers["x-astraea-job"]


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    greedy = text(ask(client, max_tokens=20))
    stop = greedy[10:13]
    answer = ask(client, max_tokens=20, stop_sequences=["never said", stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert text(answer) == greedy[: greedy.index(stop)]


def test_what_is_sent_again_is_read_from_the_cache(client: Anthropic) -> None:
    said: list[Any] = [{"role": "user", "content": "Count the lighthouses on that coast. " * 6}]
    first = ask(client, said)
    said += [{"role": "assistant", "content": first.content}, {"role": "user", "content": "And now?"}]
    second = ask(client, said)

    def prompt(message: Message) -> int:
        return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)

    assert prompt(first) > 50
    assert prompt(second) > prompt(first) + first.usage.output_tokens
    assert (second.usage.cache_read_input_tokens or 0) >= prompt(first) - 8
    with client.messages.stream(model="demo", messages=said, max_tokens=4) as stream:
        final = stream.get_final_message()
    assert prompt(final) == prompt(second)


def test_tokens_are_counted_without_an_answer(client: Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    counted = client.messages.count_tokens(model="demo", messages=SEA, system=system)
    usage = ask(client, system=system).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert (
        counted.input_tokens > client.messages.count_tokens(model="demo", messages=[SEA[0]]).input_tokens - 40
    )


def test_two_requests_differ_in_nothing_but_the_bill(client: Anthropic) -> None:
    def counted(bill: str) -> int:
        billing = f"x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch={bill};"
        system: Any = [{"type": "text", "text": billing}, {"type": "text", "text": "Be brief. " * 30}]
        usage = ask(client, system=system).usage
        return usage.cache_read_input_tokens or 0

    counted("00000")
    assert counted("f4a90") > 80


LOOKUP: Any = {
    "name": "lookup",
    "description": "Looks up a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "lookup"}])
def test_a_forced_call_fits_its_schema_and_its_result_is_answered(client: Anthropic, choice: Any) -> None:
    said: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    settings: Any = {
        "tools": [{"type": "web_search_20250305", "name": "web_search"}, LOOKUP],
        "max_tokens": 64,
    }
    choice = choice | {"disable_parallel_tool_use": True}
    whole = ask(client, said, tool_choice=choice, **settings)
    with client.messages.stream(
        model="demo", messages=said, tool_choice=choice, extra_body={"temperature": 0}, **settings
    ) as stream:
        final = stream.get_final_message()
    (call,), (streamed,) = whole.content, final.content
    assert call.type == streamed.type == "tool_use"
    assert call.input == streamed.input
    assert call.input["city"] in ("Oslo", "Rome")
    assert (call.name, whole.stop_reason, final.stop_reason) == ("lookup", "tool_use", "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Sunny."}]}
    said += [{"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    answer = ask(client, said, tool_choice={"type": "none"}, **settings)
    assert [block.type for block in answer.content] == ["text"]


def test_structured_output_fits_its_schema(client: Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "degrees": {"type": "integer"}},
        "required": ["city", "degrees"],
        "additionalProperties": False,
    }
    answer = ask(client, max_tokens=64, output_config={"format": {"type": "json_schema", "schema": schema}})
    found = json.loads(text(answer))
    assert found["city"] in ("Oslo", "Rome")
    assert isinstance(found["degrees"], int)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"name": "no good", "input_schema": {}}]}, "tools.0.name"),
    ],
)
def test_a_wrong_field_is_named_in_anthropics_shape(
    client: Anthropic, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.messages.create(model="demo", messages=SEA, max_tokens=9, extra_body=settings)
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["message"].startswith(field)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_says_so_as_anthropic_does(client: Anthropic, stream: bool) -> None:
    long: Any = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(APIStatusError) as caught:
        client.messages.create(model="demo", messages=long, max_tokens=9, stream=stream)
    assert caught.value.status_code == 400
    assert "prompt is too long" in str(caught.value)


def test_no_version_no_key_and_unknown_betas_are_fine(server: Server) -> None:
    body = {"messages": SEA, "max_tokens": 2, "context_management": {"edits": []}, "betas": ["x"]}
    headers = {"anthropic-beta": "one-of-next-year-2027-01-01"}
    answer = httpx.post(f"{server.base_url}/messages?beta=true", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["type"] == "message"


def test_the_model_is_listed_for_anthropics_client(client: Anthropic, server: Server) -> None:
    (model,) = list(client.models.list())
    assert model.id == ask(client, max_tokens=1).model
