"""What is said when a prompt does not go on from the one before."""

from typing import Any

import numpy as np
import pytest

from astraea_local.api.hygiene import Loss, Turn, find_loss, outline
from astraea_local.api.schemas import ChatRequest, CompletionRequest
from astraea_local.engine.binding import Tokens

_SYSTEM = {"role": "system", "content": "You fix bugs in this repository. " * 3}
_USER = {"role": "user", "content": "The second test fails since yesterday. " * 3}
_CALL = {"id": "1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
_ASSISTANT = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "Look first." * 9,
    "tool_calls": [_CALL],
}
_RESULT = {"role": "tool", "tool_call_id": "1", "content": "def test(): assert False  # " * 3}
_TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
_OTHER = {"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}
_ALL: list[dict[str, Any]] = [_SYSTEM, _USER, _ASSISTANT, _RESULT]


def _tokens(text: str) -> Tokens:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.int32)


def _decode(tokens: Tokens) -> str:
    return "".join(map(chr, tokens))


def _render(request: ChatRequest) -> Tokens:
    """A token is a character; what a template does, as plainly as possible."""
    tools = f"[{request.tools}]" if request.tools else ""
    messages = "".join(
        f"<{m.role}>" + (f"<think>{m.reasoning_content}</think>" if m.reasoning_content else "") + m.text
        for m in request.messages
    )
    return _tokens(f"{tools}{messages}<assistant>")


def _chat(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> ChatRequest:
    return ChatRequest.model_validate({"messages": messages, "tools": tools})


def _turn(request: ChatRequest, answer: str = "") -> Turn:
    prompt = _render(request)
    context = np.concatenate([prompt, _tokens(answer)])
    return Turn(context, len(prompt), len("<assistant>"), outline(request))


def _lost(old: Turn, new: ChatRequest) -> Loss | None:
    return find_loss([old], _render(new), outline(new), _decode)


def test_a_conversation_that_goes_on_lost_nothing() -> None:
    old = _chat([_SYSTEM, _USER], [_TOOL])
    answer = "It is a matter of the clock."
    new = _chat([_SYSTEM, _USER, {"role": "assistant", "content": answer}, _USER], [_TOOL])
    assert _lost(_turn(old, answer), new) is None


def test_the_same_prompt_again_lost_nothing() -> None:
    assert _lost(_turn(_chat(_ALL), "An answer of some length, nearly two lines of it."), _chat(_ALL)) is None


def test_going_back_to_an_earlier_point_lost_nothing() -> None:
    for count in (2, 3):
        assert _lost(_turn(_chat(_ALL)), _chat(_ALL[:count])) is None


def _changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    return [m | fields if i == index else m for i, m in enumerate(_ALL)]


@pytest.mark.parametrize(
    ("new", "cause", "words"),
    [
        (_chat(_ALL, [_TOOL, _OTHER]), "tools", "tools changed"),
        (_chat(_ALL), "tools", "tools changed"),
        (_chat(_changed(0, content="It is Tuesday."), [_TOOL]), "system", "system message changed"),
        (_chat(_ALL[1:], [_TOOL]), "system", "system message changed"),
        (_chat(_changed(1, content="x" + str(_USER["content"])), [_TOOL]), "message", "message 2 changed"),
        (_chat(_changed(2, reasoning_content=None), [_TOOL]), "thinking", "earlier thinking dropped"),
    ],
)
def test_what_changed_is_named(new: ChatRequest, cause: str, words: str) -> None:
    loss = _lost(_turn(_chat(_ALL, [_TOOL])), new)
    assert loss is not None
    assert loss.cause == cause
    assert loss.text.endswith(f": {words}")


def test_the_position_is_the_first_token_that_differs() -> None:
    old, new = _chat(_ALL), _chat(_changed(1, content="x"))
    loss = _lost(_turn(old), new)
    assert loss is not None
    assert _decode(_render(new)[loss.at :]).startswith("x")
    assert loss.known == len(_render(old))
    assert loss.text == f"prefix lost at token {loss.at:,} of {loss.known:,}: message 2 changed"


def test_thinking_that_a_template_drops_is_named_though_no_message_changed() -> None:
    old = _chat([_SYSTEM, _USER])
    answer = (
        "<think>The clock is mocked only in the first test, so the second one sees the real time.</think>No."
    )
    new = _chat([_SYSTEM, _USER, {"role": "assistant", "content": "No."}, _USER])
    loss = _lost(_turn(old, answer), new)
    assert loss is not None
    assert loss.cause == "thinking"


def test_an_answer_that_comes_back_changed_is_named() -> None:
    old = _chat([_SYSTEM, _USER])
    new = _chat([_SYSTEM, _USER, {"role": "assistant", "content": "Shortened by the client."}, _USER])
    loss = _lost(_turn(old, "An answer of which the client keeps only a summary of its own."), new)
    assert loss is not None
    assert loss.cause == "answer"


def test_a_few_tokens_are_not_worth_a_word() -> None:
    old = _chat([_SYSTEM, _USER])
    new = _chat([_SYSTEM, _USER, {"role": "assistant", "content": "Yes!"}, _USER])
    assert _lost(_turn(old, "Yes, of course."), new) is None


def test_a_changed_plain_prompt_says_where() -> None:
    prompt = _tokens("An old prompt that was long enough to be worth keeping. " * 3)
    old = Turn(prompt, len(prompt), 0, outline(CompletionRequest(prompt="x")))
    loss = find_loss([old], _tokens("An old prompt, but another one"), None, _decode)
    assert loss is not None
    assert (loss.at, loss.cause) == (13, "rendering")


def test_a_question_beside_the_conversation_does_not_make_it_lost() -> None:
    turns = [_turn(_chat(_ALL)), _turn(_chat([{"role": "user", "content": "A title for this?"}]))]
    assert find_loss(turns, _render(_chat([*_ALL, _USER])), outline(_chat([*_ALL, _USER])), _decode) is None


def test_a_job_seen_for_the_first_time_lost_nothing() -> None:
    assert find_loss([], _render(_chat(_ALL)), outline(_chat(_ALL)), _decode) is None
