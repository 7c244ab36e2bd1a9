import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from astraea_local.api.schemas import Message
from astraea_local.api.tools import (
    kind_of,
    returned_tool,
    returned_tool_of_blocks,
    returned_tool_of_items,
    tool_key,
)


def _called(name: str, arguments: object) -> dict[str, object]:
    return {"id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _conversation(*calls: dict[str, object]) -> list[Message]:
    results = [Message(role="tool", content="done", tool_call_id="call-1") for _ in calls]
    return [
        Message(role="user", content="fix it"),
        Message(role="assistant", content=None, tool_calls=list(calls)),
        *results,
    ]


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        ("pytest -q tests", "pytest"),
        ("cd /repo && git status", "git"),
        ("FOO=1 python -m build", "build"),
        ("/usr/bin/env node x.js", "node"),
        ("sudo timeout make", "make"),
        (["bash", "-lc", "cargo test --all"], "cargo"),
        ("echo 'unfinished", "echo"),
    ],
)
def test_a_shell_call_is_known_by_the_program_it_starts(command: object, verb: str) -> None:
    messages = _conversation(_called("bash", json.dumps({"command": command})))
    assert returned_tool(messages) == f"bash:{verb}"


def test_any_other_tool_is_known_by_its_name() -> None:
    assert returned_tool(_conversation(_called("read_file", '{"path": "a.py"}'))) == "read_file"


def test_of_several_calls_the_first_counts() -> None:
    messages = _conversation(_called("search", "{}"), _called("bash", '{"command": "ls"}'))
    assert returned_tool(messages) == "search"


def test_a_conversation_that_does_not_end_with_a_result_comes_from_no_tool() -> None:
    messages = [*_conversation(_called("search", "{}")), Message(role="user", content="go on")]
    assert returned_tool(messages) == ""
    assert returned_tool([Message(role="user", content="hello")]) == ""


@pytest.mark.parametrize("call", [{}, {"function": None}, {"function": {"name": 3}}, {"function": "x"}])
def test_a_malformed_call_is_refused(call: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="each call needs"):
        _conversation(call)


@given(arguments=st.text() | st.dictionaries(st.text(), st.text() | st.lists(st.text())), name=st.text())
def test_whatever_a_client_sends_gives_a_short_printable_name(arguments: object, name: str) -> None:
    tool = returned_tool(_conversation(_called(name, arguments)))
    assert len(tool) <= 129
    assert tool.isprintable()


def test_prompts_that_begin_alike_are_of_one_kind_whatever_follows() -> None:
    first = np.arange(200, dtype=np.int32)
    second = np.concatenate([first[:100], first[:50]])
    other = first + 1
    assert kind_of(first) == kind_of(second) != ""
    assert kind_of(first) != kind_of(other)


def test_a_prompt_of_a_few_tokens_is_of_no_kind() -> None:
    assert kind_of(np.arange(10, dtype=np.int32)) == ""


def test_the_call_that_the_results_answer_counts_whatever_their_order() -> None:
    messages = _conversation(
        _called("search", "{}") | {"id": "a"}, _called("shell", '{"cmd": "ls"}') | {"id": "b"}
    )[:2]
    messages.append(Message(role="tool", content="done", tool_call_id="b"))
    assert returned_tool(messages) == "shell:ls"


def test_arguments_nested_beyond_reason_are_no_command() -> None:
    assert tool_key("bash", "[" * 100_000) == "bash"


def test_responses_items_name_the_tool() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "shell", "arguments": '{"command": ["ls"]}'}
    output = {"type": "function_call_output", "call_id": "1", "output": "a b"}
    user = {"type": "message", "role": "user", "content": "hi"}
    assert returned_tool_of_items([user, call, output]) == "shell:ls"
    assert returned_tool_of_items([user, call, output, user]) == ""
    assert returned_tool_of_items([output]) == ""
    local = {
        "type": "local_shell_call",
        "call_id": "2",
        "action": {"command": ["bash", "-lc", "cd x && make"]},
    }
    assert returned_tool_of_items([local, {"type": "local_shell_call_output", "call_id": "2"}]) == (
        "local_shell:make"
    )
    patch = {"type": "custom_tool_call", "call_id": "3", "name": "apply_patch", "input": "*** Begin"}
    assert (
        returned_tool_of_items([patch, {"type": "custom_tool_call_output", "call_id": "3"}]) == "apply_patch"
    )


def test_message_blocks_name_the_tool() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "FOO=1 pytest -q"}}
    said = {"role": "assistant", "content": [{"type": "text", "text": "Now the tests."}, use]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "3 passed"}
    reminder = {"type": "text", "text": "Mind the budget."}
    back = {"role": "user", "content": [result, reminder]}
    assert returned_tool_of_blocks([{"role": "user", "content": "go"}, said, back]) == "Bash:pytest"
    assert returned_tool_of_blocks([said, back, {"role": "user", "content": "and?"}]) == ""


_ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "call_id", "id", "name", "input", "arguments"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.lists(_ANYTHING, max_size=4))
def test_malformed_items_and_blocks_never_fail(entries: list[object]) -> None:
    assert isinstance(returned_tool_of_items(entries), str)
    assert isinstance(returned_tool_of_blocks(entries), str)
