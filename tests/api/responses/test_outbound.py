"""Answers as the events of a response, checked against the official client's types."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from astraea_local.api.errors import ApiError
from astraea_local.api.parts import AnswerPart, Reasoning, Text
from astraea_local.api.responses.inbound import sealed
from astraea_local.api.responses.outbound import Outbound
from tests.api.answers import answers, call

ABOUT: dict[str, Any] = {
    "id": "resp_1",
    "model": "m",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 5,
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def tell(parts: list[AnswerPart], reason: str = "stop", *, seal: bool = False) -> list[dict[str, Any]]:
    out = Outbound(ABOUT, seal=seal, clock=lambda: 1000.0)
    events = list(out.begin())
    for part in parts:
        events += out.part(part)
    events += out.close(reason)
    return events + list(out.end(reason, USAGE, {}))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_has_the_whole_sequence() -> None:
    events = tell([Text("Hello"), Text(" you")])
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    final = Response.model_validate(events[-1]["response"])
    assert (final.status, final.output_text) == ("completed", "Hello you")


def test_a_call_has_its_arguments_in_pieces_and_whole() -> None:
    events = tell(call(0))
    assert kinds(events)[2:-1] == [
        "output_item.added",
        *["function_call_arguments.delta"] * 3,
        "function_call_arguments.done",
        "output_item.done",
    ]
    (item,) = events[-1]["response"]["output"]
    assert (item["call_id"], item["name"], item["status"]) == ("call_0", "read", "completed")
    assert item["arguments"] == '{"path": "a.py"}'


def test_reasoning_comes_before_the_message_as_an_item_of_its_own() -> None:
    events = tell([Reasoning("hm"), Text("yes")])
    thought, message = events[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert (thought["type"], message["type"]) == ("reasoning", "message")
    assert "encrypted_content" not in thought
    (thought,) = tell([Reasoning("hm")], seal=True)[-1]["response"]["output"]
    assert thought["encrypted_content"] == sealed("hm")


def test_an_answer_cut_by_its_length_is_incomplete() -> None:
    events = tell([Text("Hel")], "length")
    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ApiError(400, "too long", code="context_length_exceeded"), "context_length_exceeded"),
        (ApiError(500, "broken"), "server_error"),
    ],
)
def test_a_failure_is_the_last_event(error: ApiError, code: str) -> None:
    out = Outbound(ABOUT, seal=False, clock=lambda: 0.0)
    events = [*out.begin(), *out.part(Text("a")), *out.fail(error)]
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": code, "message": error.message}


@given(parts=answers(), reason=st.sampled_from(["stop", "length", "tool_calls"]))
def test_events_agree_with_each_other_and_with_the_official_types(
    parts: list[AnswerPart], reason: str
) -> None:
    events = tell(parts, reason)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event)
    output = events[-1]["response"]["output"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == output
    for index, item in enumerate(output):
        own = [e for e in events if e.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[-1]["type"] == "response.output_item.done"
        assert {e.get("item_id", item["id"]) for e in own} == {item["id"]}
        deltas = "".join(e["delta"] for e in own if e["type"].endswith(".delta"))
        assert deltas == (item["arguments"] if "arguments" in item else item["content"][0]["text"])
    assert all(item["status"] == "completed" for item in output[:-1])
