"""`/v1/responses` of a real server, spoken to by the official client."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.conftest import Server

pytestmark = pytest.mark.e2e

SEA = "Write one sentence about the sea."


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def ask(client: OpenAI, given: Any = SEA, **settings: Any) -> Response:
    made: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12} | settings
    answer = client.responses.create(model="demo", input=given, **made)
    assert isinstance(answer, Response)
    return answer


def kinds(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]


def test_a_stream_says_the_same_as_a_whole_answer(client: OpenAI) -> None:
    whole = ask(client, max_output_tokens=64)
    with client.responses.stream(model="demo", input=SEA, temperature=0, max_output_tokens=64) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(deltas) > 1
    assert "".join(deltas) == final.output_text == whole.output_text != ""
    assert (final.status, whole.status) == ("completed", "completed")
    assert final.model == whole.model
    assert final.id != whole.id


def test_the_output_is_bounded_and_says_so(client: OpenAI) -> None:
    answer = ask(client, max_output_tokens=3)
    (message,) = answer.output
    assert message.type == "message"
    assert (answer.status, message.status) == ("incomplete", "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert (answer.usage.output_tokens, answer.error) == (3, None)


def test_events_have_names_and_numbers_and_no_done_marker(server: Server) -> None:
    body = {"input": SEA, "stream": True, "max_output_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{server.base_url}/responses", json=body, timeout=60)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == kinds(answer)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds(answer)[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds(answer)[-1] == "response.incomplete"
    assert "[DONE]" not in answer.text
    assert answer.headers["x-astraea-job"]


def test_a_response_goes_on_where_another_ended(client: OpenAI) -> None:
    story = "Remember the word marigold. " * 8
    first = ask(client, story, instructions="Answer in one word.")
    second = ask(client, "Which word?", previous_response_id=first.id)
    assert first.usage is not None
    assert second.usage is not None
    # Instructions are not carried over, so the template's own take their place.
    alone = ask(client, "Which word?").usage
    assert alone is not None
    assert second.usage.input_tokens > alone.input_tokens + 40
    third = ask(client, "Again.", previous_response_id=second.id)
    assert third.usage is not None
    assert third.usage.input_tokens_details.cached_tokens >= second.usage.input_tokens - 8
    assert third.previous_response_id == second.id


def test_what_is_sent_again_is_cached(client: OpenAI) -> None:
    said: list[Any] = [{"role": "user", "content": "Count the lighthouses on this coast. " * 6}]
    first = ask(client, said, store=False)
    said += [item.model_dump(exclude_none=True) for item in first.output]
    second = ask(client, [*said, {"role": "user", "content": "And now?"}], store=False)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 8


def test_stored_responses_can_be_read_and_deleted(client: OpenAI) -> None:
    made = ask(client, metadata={"topic": "sea"})
    read = client.responses.retrieve(made.id)
    assert (read.output_text, read.metadata) == (made.output_text, {"topic": "sea"})
    client.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(NotFoundError):
        client.responses.delete(made.id)
    with pytest.raises(BadRequestError) as caught:
        ask(client, previous_response_id=made.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_what_is_not_to_be_stored_is_not(client: OpenAI) -> None:
    made = ask(client, store=False)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(made.id)


def test_a_probe_without_input_is_answered(client: OpenAI) -> None:
    assert ask(client, [], max_output_tokens=1).usage is not None
    assert ask(client, "", max_output_tokens=1, store=False).status in ("completed", "incomplete")


def test_input_is_counted_without_an_answer(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="demo", input=SEA)
    usage = ask(client).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


LOOKUP: Any = {
    "type": "function",
    "name": "lookup",
    "description": "Looks up a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "lookup"}])
def test_a_forced_call_fits_its_schema_and_its_result_is_answered(client: OpenAI, choice: Any) -> None:
    said: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    others: Any = [{"type": "web_search"}, {"type": "custom", "name": "apply_patch"}]
    settings: Any = {"tools": [*others, LOOKUP], "max_output_tokens": 64, "parallel_tool_calls": False}
    whole = ask(client, said, tool_choice=choice, **settings)
    with client.responses.stream(
        model="demo", input=said, tool_choice=choice, temperature=0, **settings
    ) as stream:
        pieces = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    (call,), (streamed,) = whole.output, final.output
    assert call.type == streamed.type == "function_call"
    assert call.arguments == streamed.arguments == "".join(pieces)
    arguments = json.loads(call.arguments)
    assert arguments["city"] in ("Oslo", "Rome")
    assert arguments["days"] <= 9
    assert (call.name, whole.status) == ("lookup", "completed")
    said += [call.model_dump(exclude_none=True)]
    said += [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    answer = ask(client, said, tool_choice="none", **settings)
    assert [item.type for item in answer.output] == ["message"]


class Weather(BaseModel):
    city: Literal["Oslo", "Rome"]
    degrees: int


def test_structured_output_fits_its_schema(client: OpenAI) -> None:
    answer = client.responses.parse(
        model="demo", input="The weather in Rome?", text_format=Weather, temperature=0, max_output_tokens=64
    )
    assert isinstance(answer.output_parsed, Weather)
    form: Any = {"format": {"type": "json_object"}}
    text = ask(client, "Say it in JSON.", text=form).output_text
    assert text.startswith("{")


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "function", "name": "no good"}]}, "tools.0.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_k": -3}, "top_k"),
    ],
)
def test_a_wrong_field_is_named(client: OpenAI, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="demo", input="x", extra_body=settings)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_says_so(client: OpenAI, stream: bool) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.responses.create(model="demo", input="word " * 3000, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (400, "context_length_exceeded")


def test_half_of_a_surrogate_pair_breaks_nothing(server: Server) -> None:
    body = r'{"input": "a \ud83d b", "instructions": "\ud83d", "max_output_tokens": 2, "stream": %s}'
    json_type = {"Content-Type": "application/json"}
    for stream in ("true", "false"):
        content = body % stream
        answer = httpx.post(f"{server.base_url}/responses", content=content, headers=json_type, timeout=60)
        assert answer.status_code == 200
