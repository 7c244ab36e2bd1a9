"""Grammars of answers, on the vocabulary of SmolLM2, in which the tags of most formats are plain text."""

from collections.abc import Sequence
from typing import Any

import pytest

from astraea_local.api.constraints import schema_grammar
from astraea_local.api.tool_formats.base import Tool, Unsupported
from astraea_local.api.tool_formats.lark import MAX_CALLS, Marker
from astraea_local.api.tool_formats.registry import FORMATS
from astraea_local.api.tool_formats.thinking import AnswerForm, Thinking, Wanted
from astraea_local.engine.binding import Guides, Vocab

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "query": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1},
        "order": {"enum": ["new", "old"]},
    },
    "required": ["query", "limit"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (Tool("search", SCHEMA, schema_grammar(SCHEMA)), Tool("now", NOTHING, schema_grammar(NOTHING)))
SEARCH = ("search", {"query": "tides <at> noon", "limit": 3, "order": "new"})
NOW: tuple[str, dict[str, Any]] = ("now", {})
THINK = Thinking("<think>", "</think>")
# In these an answer is one call, or calls cannot follow text.
SINGLE = {"harmony"}
ANCHORED = {"harmony", "llama3", "pythonic"}


class Follower:
    """Whether texts follow grammars."""

    def __init__(self, guides: Guides, vocab: Vocab, markers: dict[str, Marker]) -> None:
        self._guides, self._vocab, self.markers = guides, vocab, markers

    def follows(self, grammar: str, text: str | Sequence[int]) -> bool:
        """Whether the text is a whole answer."""
        guide = self._guides.open(grammar)
        tokens = (
            self._vocab.tokenize(text, add_special=False, parse_special=True).tolist()
            if isinstance(text, str)
            else text
        )
        return all(guide.take(int(t)) for t in tokens) and (guide.complete or guide.take(self._vocab.eos))


@pytest.fixture(scope="module")
def follower(guides: Guides, vocab: Vocab) -> Follower:
    return Follower(guides, vocab, {})


def grammar(name: str | None, wanted: Wanted, *, exact: bool = True, **form: Any) -> str:
    return AnswerForm(None if name is None else FORMATS[name], **form).grammar(wanted, {}, exact=exact)


@pytest.mark.parametrize("name", FORMATS)
def test_a_forced_answer_is_calls_and_nothing_else(follower: Follower, name: str) -> None:
    format_ = FORMATS[name]
    rules = grammar(name, Wanted(tools=TOOLS, must_call=True))
    one = format_.render([SEARCH]).removesuffix("<|call|>")
    assert follower.follows(rules, one)
    if name not in SINGLE:
        assert follower.follows(rules, format_.render([SEARCH, NOW]))
        alone = grammar(name, Wanted(tools=TOOLS, must_call=True, parallel=False))
        assert follower.follows(alone, one)
        assert not follower.follows(alone, format_.render([SEARCH, NOW]))
    assert not follower.follows(rules, "I would rather talk.")
    for wrong in (
        ("search", {"query": "x"}),
        ("search", {"query": "x", "limit": 0}),
        ("search", {"query": "x", "limit": 1, "order": "newest"}),
        ("search", {"query": "x", "limit": 1, "more": True}),
        ("launch", {}),
    ):
        assert not follower.follows(rules, format_.render([wrong]).removesuffix("<|call|>")), wrong


@pytest.mark.parametrize("name", sorted(set(FORMATS) - SINGLE))
@pytest.mark.parametrize("must_call", [True, False])
def test_the_number_of_calls_is_bounded(follower: Follower, name: str, must_call: bool) -> None:
    rules = grammar(name, Wanted(tools=TOOLS, must_call=must_call), exact=must_call)
    assert follower.follows(rules, FORMATS[name].render([NOW] * MAX_CALLS))
    assert not follower.follows(rules, FORMATS[name].render([NOW] * (MAX_CALLS + 1)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_free_answer_is_text_or_calls_that_fit(follower: Follower, name: str) -> None:
    format_ = FORMATS[name]
    rules = grammar(name, Wanted(tools=TOOLS), exact=False)
    before = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" if name == "harmony" else ""
    said = "<|channel|>final<|message|>" if name == "harmony" else ""
    assert follower.follows(rules, f"{before}{said}Noon, I think: 3 < 5 [1].\n")
    call = format_.render([NOW]).removesuffix("<|call|>")
    assert follower.follows(rules, before + call)
    if name not in ANCHORED:
        assert follower.follows(rules, f"Let me see.\n{call}")
    wrong = format_.render([("now", {"zone": "x"})]).removesuffix("<|call|>")
    assert not follower.follows(rules, before + wrong)


@pytest.mark.parametrize("name", FORMATS)
def test_no_call_can_begin_where_none_is_allowed(follower: Follower, name: str) -> None:
    rules = grammar(name, Wanted())
    call = FORMATS[name].render([NOW]).removesuffix("<|call|>")
    said = "<|channel|>final<|message|>" if name == "harmony" else ""
    assert follower.follows(rules, f"{said}Noon.")
    assert not follower.follows(rules, call)


@pytest.mark.parametrize("opened", [False, True])
def test_thoughts_come_before_what_is_constrained(follower: Follower, opened: bool) -> None:
    call = FORMATS["hermes"].render([NOW])
    tag = "" if opened else "<think>"
    form: dict[str, Any] = {"thinking": THINK, "opened": opened}
    forced = grammar("hermes", Wanted(tools=TOOLS, must_call=True), **form)
    free = grammar("hermes", Wanted(tools=TOOLS), **form)
    json = grammar(None, Wanted(content=schema_grammar(SCHEMA)), **form)
    answer = '{"query": "a", "limit": 1}'
    thoughts = f"{tag}perhaps <tool_call> or not</think>\n\n"
    assert follower.follows(forced, thoughts + call)
    assert follower.follows(free, thoughts + call)
    assert follower.follows(free, thoughts + "Noon.")
    assert follower.follows(json, thoughts + answer)
    assert not follower.follows(forced, thoughts + "Noon.")
    assert not follower.follows(json, thoughts + "Noon.")
    assert follower.follows(forced, call) is not opened
    assert follower.follows(json, answer) is not opened


def test_an_answer_may_be_calls_or_the_json_that_was_asked_for(follower: Follower) -> None:
    rules = grammar("hermes", Wanted(tools=TOOLS, content=schema_grammar(SCHEMA)))
    assert follower.follows(rules, '{"query": "a", "limit": 1}')
    assert follower.follows(rules, FORMATS["hermes"].render([NOW]))
    assert not follower.follows(rules, "Noon.")


def test_special_tokens_are_written_by_their_id(follower: Follower, vocab: Vocab) -> None:
    """Where a tag is one token no text can stand for it."""
    opening, closing = (
        int(vocab.tokenize(t, add_special=False, parse_special=True)[0])
        for t in ("<|im_start|>", "<repo_name>")
    )
    markers = {"<tool_call>": Marker(opening, True), "</tool_call>": Marker(closing, True)}
    inner = vocab.tokenize('\n{"name": "now", "arguments": {}}\n', add_special=False, parse_special=False)
    call = [opening, *inner.tolist(), closing]
    said = vocab.tokenize("Well.", add_special=False, parse_special=False).tolist()
    form = AnswerForm(FORMATS["hermes"])
    forced = form.grammar(Wanted(tools=TOOLS, must_call=True), markers, exact=True)
    free = form.grammar(Wanted(tools=TOOLS), markers, exact=True)
    none = form.grammar(Wanted(), markers, exact=True)
    spelled = FORMATS["hermes"].render([NOW])
    assert follower.follows(forced, call)
    assert not follower.follows(forced, spelled)
    assert follower.follows(free, said + call)
    assert follower.follows(free, spelled)
    assert follower.follows(none, said)
    assert not follower.follows(none, said + call)


@pytest.mark.parametrize("name", ["qwen_coder", "glm", "pythonic"])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "object", "minProperties": 1},
        {"type": "object", "properties": {}, "required": ["a"]},
    ],
)
def test_schemas_that_only_a_whole_object_can_fit_need_json(name: str, schema: dict[str, Any]) -> None:
    tools = (Tool("f", schema),)
    with pytest.raises(Unsupported):
        grammar(name, Wanted(tools=tools, must_call=True))
    assert grammar(name, Wanted(tools=tools), exact=False)
