"""Plans of conversations: on the vocabulary of SmolLM2, with templates of our own."""

from typing import Any

import pytest

from astraea_local.api.chat_plan import ChatPlan, ChatPlanner
from astraea_local.api.errors import ApiError
from astraea_local.api.parts import Reasoning, Text, ToolArguments, ToolCallBegun
from astraea_local.api.schemas import ChatRequest
from astraea_local.api.templates import ChatTemplate
from astraea_local.api.tool_formats.registry import FORMATS
from astraea_local.engine.binding import Guides, Vocab
from tests.api import grammars

THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools | tojson if tools }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>\n{% endif %}"
    "{{ reasoning_effort }}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "read",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
CALL = FORMATS["hermes"].render([("read", {"path": "a"})])


def plan(vocab: Vocab, source: str | None = None, **body: Any) -> ChatPlan:
    template = ChatTemplate(source, bos="", eos="<|im_end|>")

    def tokenize(text: str) -> Any:
        return vocab.tokenize(text, add_special=False, parse_special=True)

    request = {"messages": [{"role": "user", "content": "hello"}], **body}
    return ChatPlanner(template, vocab, tokenize).plan(ChatRequest.model_validate(request))


def prompt_of(vocab: Vocab, made: ChatPlan) -> str:
    return b"".join(vocab.piece(int(t), special=True) for t in made.prompt).decode()


def follows(guides: Guides, vocab: Vocab, made: ChatPlan, text: str) -> bool:
    assert made.guidance is not None
    return grammars.follows(guides, vocab, made.guidance, text)


def parts_of(made: ChatPlan, text: str) -> list[Any]:
    parser = made.parser()
    return parser.push(text) + parser.finish()


def test_a_plain_conversation_is_free(vocab: Vocab) -> None:
    made = plan(vocab)
    assert (made.guidance, made.shown) == (None, ())
    assert parts_of(made, f"so {CALL}") == [Text(f"so {CALL}")]


def test_tools_are_described_and_their_calls_read(vocab: Vocab, guides: Guides) -> None:
    made = plan(vocab, tools=[TOOL])
    assert '"name": "read"' in prompt_of(vocab, made)
    assert follows(guides, vocab, made, "Hello.")
    assert follows(guides, vocab, made, CALL)
    assert not follows(guides, vocab, made, CALL.replace("path", "file"))
    begun, arguments = parts_of(made, CALL)
    assert isinstance(begun, ToolCallBegun)
    assert begun.id.startswith("call_")
    assert arguments == ToolArguments(0, '{"path": "a"}')
    assert parts_of(made, CALL)[0].id != begun.id


def test_no_choice_keeps_the_prompt_and_forbids_the_call(vocab: Vocab, guides: Guides) -> None:
    free, none = plan(vocab, tools=[TOOL]), plan(vocab, tools=[TOOL], tool_choice="none")
    assert prompt_of(vocab, none) == prompt_of(vocab, free)
    assert follows(guides, vocab, none, "Hello.")
    assert not follows(guides, vocab, none, CALL)
    assert parts_of(none, CALL) == [Text(CALL)]


def test_a_named_tool_excludes_the_others(vocab: Vocab, guides: Guides) -> None:
    other = {"type": "function", "function": {"name": "write"}}
    named = {"type": "function", "function": {"name": "read"}}
    made = plan(vocab, tools=[other, TOOL], tool_choice=named)
    assert follows(guides, vocab, made, CALL)
    assert not follows(guides, vocab, made, FORMATS["hermes"].render([("write", {})]))
    assert not follows(guides, vocab, made, "Hello.")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_exclude_the_others_and_keep_the_prompt(
    vocab: Vocab, guides: Guides, mode: str
) -> None:
    other = {"type": "function", "function": {"name": "write"}}
    read = {"type": "function", "function": {"name": "read"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [read]}}
    made = plan(vocab, tools=[other, TOOL], tool_choice=allowed)
    assert prompt_of(vocab, made) == prompt_of(vocab, plan(vocab, tools=[other, TOOL]))
    assert follows(guides, vocab, made, CALL)
    assert not follows(guides, vocab, made, FORMATS["hermes"].render([("write", {})]))
    assert follows(guides, vocab, made, "Hello.") is (mode == "auto")


@pytest.mark.parametrize(
    ("choice", "strict", "refused"),
    [("auto", None, False), ("auto", True, True), ("required", None, True), ("required", False, False)],
)
def test_only_a_schema_that_must_hold_is_refused(
    vocab: Vocab, choice: str, strict: bool | None, refused: bool
) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "tag", "parameters": schema, "strict": strict}}
    if not refused:
        assert plan(vocab, tools=[TOOL, tool], tool_choice=choice).guidance
        return
    with pytest.raises(ApiError, match=r"tools\.1\.function\.parameters: .* uniqueItems") as error:
        plan(vocab, tools=[TOOL, tool], tool_choice=choice)
    assert error.value.param == "tools.1.function.parameters"


def test_what_xml_cannot_hold_is_written_as_json(vocab: Vocab, guides: Guides) -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{# <function= <parameter= #}{{ tools | tojson }}"
    )
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x$"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    made = plan(vocab, source, tools=[tool], tool_choice="required")
    call = FORMATS["hermes"].render([("f", {"a": "x"})])
    assert follows(guides, vocab, made, call)
    assert not follows(guides, vocab, made, call.replace('"x"', '"y"'))
    assert [type(p) for p in parts_of(made, call)] == [ToolCallBegun, ToolArguments]


def test_thoughts_that_the_prompt_begins_are_told_apart(vocab: Vocab, guides: Guides) -> None:
    made = plan(vocab, THINKING)
    assert parts_of(made, "hm\n</think>\n\nyes") == [Reasoning("hm"), Text("yes")]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}}
    held = plan(vocab, THINKING, response_format=schema)
    assert follows(guides, vocab, held, 'hm</think>\n"yes"')
    assert not follows(guides, vocab, held, '"yes"')


@pytest.mark.parametrize(
    "settings", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_thoughts_can_be_switched_off(vocab: Vocab, guides: Guides, settings: dict[str, Any]) -> None:
    made = plan(vocab, THINKING, response_format={"type": "json_object"}, **settings)
    assert prompt_of(vocab, made).endswith("<think></think>")
    assert follows(guides, vocab, made, '{"a": 1}')


def test_the_effort_reaches_the_template(vocab: Vocab) -> None:
    assert prompt_of(vocab, plan(vocab, THINKING, reasoning_effort="low")).endswith("<think>\nlow")


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("none", [Text("hm"), Text("</think>"), Text("yes")]),
        ("deepseek-legacy", [Text("hm"), Reasoning("hm"), Text("</think>"), Text("yes")]),
    ],
)
def test_thoughts_go_where_the_request_wants_them(vocab: Vocab, style: str, expected: list[Any]) -> None:
    assert parts_of(plan(vocab, THINKING, reasoning_format=style), "hm</think>\nyes") == expected


def test_a_grammar_of_the_client_comes_first(vocab: Vocab) -> None:
    assert plan(vocab, tools=[TOOL], grammar='root ::= "x"').guidance is None
