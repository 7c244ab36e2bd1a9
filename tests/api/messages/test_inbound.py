"""Messages requests as conversations."""

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.api.dialect import chat_request
from astraea_local.api.errors import ApiError
from astraea_local.api.messages.inbound import conversation
from astraea_local.api.messages.schemas import MessagesRequest

LOOKUP = {"name": "lookup", "description": "Looks up.", "input_schema": {"type": "object", "properties": {}}}
HELLO = [{"role": "user", "content": "hello"}]


def fields(**body: Any) -> dict[str, Any]:
    return conversation(MessagesRequest.model_validate({"messages": HELLO, "max_tokens": 9} | body))


def said(**body: Any) -> list[tuple[str, str | None]]:
    return [(m["role"], m.get("content")) for m in fields(**body)["messages"]]


@pytest.mark.parametrize(
    "system", ["Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {}}]]
)
def test_the_system_prompt_in_both_forms(system: Any) -> None:
    assert said(system=system) == [("system", "Be brief."), ("user", "hello")]


@pytest.mark.parametrize("bill", ["a1b2c", "00000"])
@pytest.mark.parametrize("glue", [False, True])
def test_the_billing_header_never_reaches_the_prompt(bill: str, glue: bool) -> None:
    header = f"x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch={bill};"
    texts = [f"{header}\nBe brief."] if glue else [header, "Be brief."]
    system = [{"type": "text", "text": text} for text in texts]
    assert said(system=system) == [("system", "Be brief."), ("user", "hello")]
    assert said(system=header) == [("user", "hello")]


def test_a_whole_turn_with_tools_is_told_again() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "list files"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "use ls", "signature": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}},
                {"type": "tool_use", "id": "t2", "name": "Read", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "a b"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
                },
                {"type": "text", "text": "and now?"},
            ],
        },
    ]
    user, answer, first, second, last = fields(messages=messages)["messages"]
    assert (user["content"], last["content"]) == ("list files", "and now?")
    assert (answer["content"], answer["reasoning_content"]) == ("I look.", "use ls")
    assert [c["id"] for c in answer["tool_calls"]] == ["t1", "t2"]
    assert answer["tool_calls"][0]["function"] == {"name": "Bash", "arguments": '{"command": "ls"}'}
    assert (first["tool_call_id"], first["name"], first["content"]) == ("t1", "Bash", "a b")
    assert second["content"] == "x\ny"


def test_a_failed_tool_says_so_even_without_text() -> None:
    content = [{"type": "tool_result", "tool_use_id": "t1", "is_error": True}]
    assert said(messages=[{"role": "user", "content": content}])[-1] == ("tool", "the tool failed")


def test_instructions_between_messages_keep_their_place() -> None:
    later = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert said(messages=[*HELLO, later])[-1] == ("user", "Be brief.")


def test_images_leave_a_note_and_text_documents_their_text() -> None:
    content = [
        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
        {"type": "document", "source": {"type": "text", "data": "notes"}},
        {"type": "search_result_of_next_year"},
        {"type": "text", "text": "what is it"},
    ]
    text = said(messages=[{"role": "user", "content": content}])[0][1]
    assert text is not None
    assert "image omitted" in text
    assert text.endswith("notes\n\nwhat is it")


@pytest.mark.parametrize("variables", ["x", 3, [1]])
def test_template_variables_that_are_none_are_refused_where_they_stand(variables: Any) -> None:
    with pytest.raises(RequestValidationError) as refused:
        chat_request(fields(thinking={"type": "enabled"}, chat_template_kwargs=variables))
    assert refused.value.errors()[0]["loc"] == ("chat_template_kwargs",)
    kept = fields(thinking={"type": "enabled"}, chat_template_kwargs={"a": 1})["chat_template_kwargs"]
    assert kept == {"enable_thinking": True, "a": 1}


def test_tools_that_run_at_anthropic_are_left_out() -> None:
    others = [
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "bash_20250124", "name": "bash"},
    ]
    found = fields(tools=[*others, LOOKUP])["tools"]
    assert [t["function"]["name"] for t in found] == ["lookup"]
    assert found[0]["function"]["parameters"] == LOOKUP["input_schema"]
    assert "tools" not in fields(tools=others, tool_choice={"type": "any"})


@pytest.mark.parametrize(
    ("choice", "chat"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "lookup"}, {"type": "function", "function": {"name": "lookup"}}),
    ],
)
def test_the_choice_of_a_tool(choice: Any, chat: Any) -> None:
    found = fields(tools=[LOOKUP], tool_choice=choice | {"disable_parallel_tool_use": True})
    assert (found["tool_choice"], found["parallel_tool_calls"]) == (chat, False)


def test_settings_carry_over() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    chat = chat_request(
        fields(
            stop_sequences=["END"], temperature=0, top_p=0.5, top_k=7, metadata={"user_id": "u"}, stream=True,
            output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"},
            thinking={"type": "disabled"}, context_management={"edits": []}, model="m",
        )
    )  # fmt: skip
    assert (chat.stops, chat.temperature, chat.top_p, chat.top_k) == (("END",), 0, 0.5, 7)
    assert (chat.max_tokens, chat.stream, chat.model) == (9, True, "m")
    assert chat.metadata == {"user_id": "u"}
    assert chat.chat_template_kwargs == {"enable_thinking": False}
    assert chat.response_format is not None
    assert chat.response_format.json_schema is not None
    assert chat.response_format.json_schema.json_schema == schema


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 2000}, {"type": "adaptive"}])
def test_thinking_can_be_asked_for(thinking: dict[str, Any]) -> None:
    assert fields(thinking=thinking)["chat_template_kwargs"] == {"enable_thinking": True}
    assert "chat_template_kwargs" not in fields()


@pytest.mark.parametrize(
    ("block", "role", "param"),
    [
        ({"type": "tool_use", "id": "t"}, "assistant", "messages.0.content.0.name"),
        ({"type": "tool_result", "content": "x"}, "user", "messages.0.content.0.tool_use_id"),
    ],
)
def test_a_wrong_block_is_named(block: dict[str, Any], role: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        fields(messages=[{"role": role, "content": [block]}])
    assert caught.value.param == param


_JSON: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, True, 3, "x", "", "astraea:%", [], ["x"], [3], {}, {"type": "text"}, [[]], [{"text": 3}],
        [{"type": "input_text", "text": "a"}, {"type": ["x"]}, {"type": "refusal"}],
    ]
)  # fmt: skip
_BLOCK = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "thinking", "tool_use", "tool_result", "image", "document", "x", 3]),
        "text": _JSON,
        "thinking": _JSON,
        "id": _JSON,
        "name": _JSON,
        "input": _JSON,
        "tool_use_id": _JSON,
        "content": _JSON,
        "source": _JSON,
    },
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system"]),
                "content": st.lists(_BLOCK, max_size=3),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_sent_is_a_conversation_or_an_error_with_a_place(messages: list[dict[str, Any]]) -> None:
    try:
        chat_request(fields(messages=messages))
        param = "messages."
    except ApiError as error:
        param = error.param or ""
    assert param.startswith("messages.")
