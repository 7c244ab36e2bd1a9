"""Responses requests as conversations."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.api.dialect import chat_request
from astraea_local.api.errors import ApiError
from astraea_local.api.responses.inbound import conversation, sealed
from astraea_local.api.responses.schemas import ResponsesRequest

LOOKUP = {"type": "function", "name": "lookup", "parameters": {"type": "object", "properties": {}}}
NAMED = {"type": "function", "function": {"name": "lookup"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


def fields(**body: Any) -> dict[str, Any]:
    return conversation(ResponsesRequest.model_validate(body))


def said(**body: Any) -> list[tuple[str, str | None]]:
    return [(m["role"], m.get("content")) for m in fields(**body)["messages"]]


def test_a_text_is_a_users_message() -> None:
    assert said(input="hello", instructions="Be brief.") == [("system", "Be brief."), ("user", "hello")]


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_an_empty_input_can_be_answered(empty: dict[str, Any]) -> None:
    assert said(**empty) == [("user", "")]
    assert chat_request(fields(max_output_tokens=1, **empty)).max_completion_tokens == 1


def test_a_whole_turn_with_tools_is_told_again() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be careful."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list files"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "use ls"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": '{"cmd": "ls"}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "a b"}]},
    ]
    system, user, answer, result = fields(input=items, instructions="You work here.")["messages"]
    assert system["content"] == "You work here.\n\nBe careful."
    assert user["content"] == "list files"
    assert (answer["content"], answer["reasoning_content"]) == ("I look.", "use ls")
    assert answer["tool_calls"][0]["function"] == {"name": "shell", "arguments": '{"cmd": "ls"}'}
    assert result == {"role": "tool", "tool_call_id": "c1", "name": "shell", "content": "a b"}


def test_calls_of_other_kinds_stay_in_the_history() -> None:
    items = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done!"},
        {"type": "local_shell_call", "call_id": "c2", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "c2", "output": "a"},
    ]
    names = [c["function"]["name"] for m in fields(input=items)["messages"] for c in m.get("tool_calls", [])]
    assert names == ["apply_patch", "local_shell"]
    assert [content for role, content in said(input=items) if role == "tool"] == ["Done!", "a"]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "compaction", "encrypted_content": "gAAAA"},
        {"type": "item_reference", "id": "rs_1"},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "astraea:%"},
        {"type": "something_of_next_year", "payload": {"a": 1}},
        {"type": 3},
    ],
)
def test_items_that_nobody_knows_are_passed_over(item: dict[str, Any]) -> None:
    assert said(input=[item, {"role": "user", "content": "go on"}]) == [("user", "go on")]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_sealed_reasoning_comes_back(text: str) -> None:
    items = [
        {"type": "reasoning", "summary": [], "encrypted_content": sealed(text)},
        {"role": "assistant", "content": "so"},
    ]
    assert fields(input=items)["messages"][-1]["reasoning_content"] == text


def test_an_image_leaves_a_note() -> None:
    parts = [{"type": "input_text", "text": "See "}, {"type": "input_image", "image_url": "data:..."}]
    assert "image" in str(said(input=[{"role": "user", "content": parts}])[0][1])


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "robot", "content": "x"}, "input.0.role"),
        ({"role": "user", "content": 3}, "input.0.content"),
        ({"role": "user", "content": [3]}, "input.0.content.0"),
        ({"type": "function_call", "call_id": "c"}, "input.0.name"),
    ],
)
def test_a_wrong_item_is_named(item: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        fields(input=[item])
    assert caught.value.param == param


def test_only_function_tools_are_taken() -> None:
    others: list[dict[str, Any]] = [
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "web_search"},
        {"type": "namespace", "name": "mcp", "tools": [LOOKUP]},
        {"type": "image_generation"},
        {"type": "local_shell"},
        {"name": "untyped"},
    ]
    taken = fields(input="x", tools=[*others, LOOKUP])["tools"]
    assert [tool["function"]["name"] for tool in taken] == ["lookup"]
    assert "tools" not in fields(input="x", tools=others, tool_choice="required")


@pytest.mark.parametrize(
    ("choice", "chat"),
    [
        ("required", "required"),
        ({"type": "function", "name": "lookup"}, NAMED),
        ({"type": "web_search"}, "auto"),
        ({"type": "allowed_tools", "mode": "required", "tools": [LOOKUP, {"type": "web_search"}]}, ALLOWED),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}, "none"),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": ["lookup"]}, 3]}, "none"),
        ({"type": "allowed_tools", "tools": 3}, "none"),
    ],
)
def test_the_choice_of_a_tool(choice: Any, chat: Any) -> None:
    other = LOOKUP | {"name": "other"}
    found = fields(input="x", tools=[LOOKUP, other], tool_choice=choice, parallel_tool_calls=False)
    assert found["tool_choice"] == chat
    assert found["parallel_tool_calls"] is False
    # All of them, so that the prompt begins alike whatever is allowed.
    assert len(found["tools"]) == 2
    assert chat_request(found).tools


@pytest.mark.parametrize("name", ["gone", ["lookup"], None])
def test_an_unknown_tool_cannot_be_chosen(name: Any) -> None:
    with pytest.raises(ApiError) as caught:
        fields(input="x", tools=[LOOKUP], tool_choice={"type": "function", "name": name})
    assert caught.value.param == "tool_choice"


def test_settings_carry_over() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    chat = chat_request(
        fields(
            input="x", text={"format": form, "verbosity": "low"}, temperature=0, top_p=0.5, top_k=7, seed=3,
            max_output_tokens=9, reasoning={"effort": "low", "summary": "auto"}, metadata={"session_id": "s"},
            prompt_cache_key="k", stream=True, model="m",
        )
    )  # fmt: skip
    assert chat.response_format is not None
    assert chat.response_format.json_schema is not None
    assert chat.response_format.json_schema.json_schema == schema
    assert (chat.temperature, chat.top_p, chat.top_k, chat.seed) == (0, 0.5, 7, 3)
    assert (chat.max_completion_tokens, chat.stream, chat.model) == (9, True, "m")
    assert (chat.metadata, chat.prompt_cache_key) == ({"session_id": "s"}, "k")


_JSON: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, True, 3, "x", "", "astraea:%", [], ["x"], [3], {}, {"type": "text"}, [[]], [{"text": 3}],
        [{"type": "input_text", "text": "a"}, {"type": ["x"]}, {"type": "refusal"}],
    ]
)  # fmt: skip
_KINDS = st.sampled_from(
    ["message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "shell_call", "x"]
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "type": _KINDS,
                "role": st.sampled_from(["user", "assistant", "system"]),
                "content": _JSON,
                "output": _JSON,
                "arguments": _JSON,
                "name": _JSON,
                "call_id": _JSON,
                "action": _JSON,
                "input": _JSON,
                "encrypted_content": _JSON,
            },
        ),
        max_size=4,
    )
)
def test_whatever_is_sent_is_a_conversation_or_an_error_with_a_place(items: list[dict[str, Any]]) -> None:
    try:
        chat_request(fields(input=items))
        param = "input."
    except ApiError as error:
        param = error.param or ""
    assert param.startswith("input.")
