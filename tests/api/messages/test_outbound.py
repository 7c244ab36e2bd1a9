"""Answers as the events of a message, put together again by the official client's accumulator."""

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from pydantic import TypeAdapter

from astraea_local.api.messages.outbound import Outbound
from astraea_local.api.parts import AnswerPart, Reasoning, Text, ToolArguments, ToolCallBegun
from tests.api.answers import answers, call

USAGE = {"input_tokens": 2, "output_tokens": 0, "cache_read_input_tokens": 1}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def tell(
    parts: list[AnswerPart], reason: str = "stop", stop: str = ""
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = Outbound("m")
    events = [json.loads(json.dumps(event)) for event in out.begin(USAGE)]
    for part in parts:
        events += out.part(part)
    events += out.close()
    events += out.end(reason, stop, USAGE | {"output_tokens": 4})
    return events, out.message


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_text_has_the_whole_sequence() -> None:
    events, message = tell([Text("Hello"), Text(" you")])
    assert kinds(events) == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert message["content"] == [{"type": "text", "text": "Hello you"}]
    assert message["usage"]["output_tokens"] == 4


def test_thinking_is_signed_and_comes_first() -> None:
    events, message = tell([Reasoning("hm"), Text("yes")])
    assert [b["type"] for b in message["content"]] == ["thinking", "text"]
    assert message["content"][0]["thinking"] == "hm"
    assert message["content"][0]["signature"]
    deltas = [e["delta"]["type"] for e in events if e["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta"]


def test_a_call_is_a_block_with_json_in_pieces() -> None:
    events, message = tell(call(0), "tool_calls")
    assert message["content"] == [
        {"type": "tool_use", "id": "call_0", "name": "read", "input": {"path": "a.py"}}
    ]
    assert message["stop_reason"] == "tool_use"
    pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == {"path": "a.py"}


@pytest.mark.parametrize(
    ("reason", "stop", "ended"),
    [
        ("stop", "", ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", "", ("max_tokens", None)),
        ("tool_calls", "END", ("tool_use", None)),
    ],
)
def test_how_it_ended(reason: str, stop: str, ended: tuple[str, str | None]) -> None:
    events, message = tell([Text("a")], reason, stop)
    assert (message["stop_reason"], message["stop_sequence"]) == ended
    assert events[-2]["delta"] == {"stop_reason": ended[0], "stop_sequence": ended[1]}


def test_arguments_cut_off_are_an_empty_object() -> None:
    _, message = tell([ToolCallBegun(0, "c", "read"), ToolArguments(0, '{"path": "a')], "length")
    assert message["content"][0]["input"] == {}


@given(answers())
def test_events_agree_with_the_message_and_with_the_official_types(parts: list[AnswerPart]) -> None:
    events, message = tell(parts)
    for event in events:
        if event["type"] != "ping":
            EVENT.validate_python(event)
    Message.model_validate(message)
    for index, block in enumerate(message["content"]):
        own = [e for e in events if e.get("index") == index]
        assert (own[0]["type"], own[-1]["type"]) == ("content_block_start", "content_block_stop")
        told = "".join(
            e["delta"].get("text") or e["delta"].get("thinking") or e["delta"].get("partial_json") or ""
            for e in own[1:-1]
        )
        if block["type"] == "tool_use":
            assert json.loads(told) == block["input"]
        else:
            assert told == block[block["type"]]
