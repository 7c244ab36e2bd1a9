import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from astraea_local.api.schemas import Message
from astraea_local.api.tools import kind_of, returned_tool


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
        ("FOO=1 python -m build", "python"),
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
