import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.api.parts import AnswerPart, Reasoning, Text, ToolArguments, ToolCallBegun
from astraea_local.api.tool_formats.reader import Reader, Script
from astraea_local.api.tool_formats.registry import FORMATS
from astraea_local.api.tool_formats.thinking import AnswerForm, Style, Thinking
from astraea_local.engine.text import TextStream
from astraea_local.profile import ToolFormatName

SCHEMAS: dict[str, dict[str, Any]] = {
    "search": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer"},
            "exact": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "near": {"type": ["object", "null"]},
        },
    },
    "mcp.files-read": {"type": "object", "properties": {"path": {"type": "string"}}},
    "now": {"type": "object", "properties": {}},
}
ONE_CALL = {"harmony"}
# Written between tags as it is, such text cannot be told from the tag that ends it.
TAGS = ("<", ">", "]", "[", "｜")
HARMONY_AFTER_THOUGHT = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.search"
    '<|channel|>commentary json<|message|>{"query": "a"}'
)
THINK = Thinking("<think>", "</think>")

plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=5,
)
untagged = plain_text.filter(lambda s: not any(t in s for t in TAGS))
searches = st.fixed_dictionaries(
    {},
    optional={
        "query": untagged,
        "limit": st.integers(-(2**53), 2**53),
        "exact": st.booleans(),
        "tags": st.lists(untagged, max_size=3),
        "near": st.none() | st.dictionaries(untagged, values, max_size=2),
    },
)
calls = st.lists(
    st.tuples(st.just("search"), searches)
    | st.tuples(st.just("mcp.files-read"), st.fixed_dictionaries({"path": untagged}))
    | st.tuples(st.just("now"), st.just({})),
    min_size=1,
    max_size=3,
)


class Ids:
    """Ids in the order in which they are asked for."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"id{self._count}"


def parse(
    name: str | None,
    pieces: Sequence[str],
    *,
    style: Style = "apart",
    thinking: Thinking | None = None,
    opened: bool = False,
    schemas: Mapping[str, Any] = SCHEMAS,
) -> list[AnswerPart]:
    """All parts of an answer that comes in these pieces."""
    form = AnswerForm(None if name is None else FORMATS[name], thinking, opened)
    reader = Reader(schemas, Ids())
    script = Script(reader, form.read(reader, style))
    parts = [part for piece in pieces for part in script.push(piece)]
    return parts + script.finish()


def gathered(parts: Sequence[AnswerPart]) -> tuple[str, str, list[tuple[str, str]]]:
    """Text, thoughts, and calls as name and arguments; calls must come one after another."""
    text = thoughts = ""
    found: list[tuple[str, str]] = []
    for part in parts:
        match part:
            case Text(more):
                text += more
            case Reasoning(more):
                thoughts += more
            case ToolCallBegun(index, id_, name):
                assert (index, id_) == (len(found), f"id{len(found) + 1}")
                found.append((name, ""))
            case ToolArguments(index, fragment):
                assert index == len(found) - 1
                assert fragment
                found[index] = (found[index][0], found[index][1] + fragment)
    return text, thoughts, found


def understood(parts: Sequence[AnswerPart]) -> list[tuple[str, Any]]:
    """The calls, their arguments parsed."""
    return [(name, json.loads(arguments)) for name, arguments in gathered(parts)[2]]


def allowed(name: str, wanted: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """As many calls as the format has in one answer."""
    return list(wanted[:1] if name in ONE_CALL else wanted)


def test_the_profile_knows_every_format() -> None:
    assert set(get_args(ToolFormatName)) == {"auto", *FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@given(wanted=calls, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_what_is_rendered_is_read_however_it_is_cut(name: str, wanted: list[Any], seed: int) -> None:
    if name == "pythonic" or name == "lfm2":
        wanted = [("now", {}) if call == "mcp.files-read" else (call, args) for call, args in wanted]
    wanted = allowed(name, wanted)
    text = FORMATS[name].render(wanted)
    whole = gathered(parse(name, [text]))
    assert (whole[0].strip(), [(n, json.loads(a)) for n, a in whole[2]]) == ("", wanted)
    assert gathered(parse(name, list(text))) == whole
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(5))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert gathered(parse(name, pieces)) == whole
    # As the engine hands it over when each token is a single byte.
    stream = TextStream()
    single = [stream.push(bytes((byte,))) for byte in text.encode()] + [stream.finish()]
    assert gathered(parse(name, [piece for piece in single if piece])) == whole


@pytest.mark.parametrize("name", FORMATS)
def test_every_single_cut_gives_the_same(name: str) -> None:
    wanted = allowed(name, [("search", {"query": 'tides "at" noon\n', "limit": 3}), ("now", {})])
    before = "" if name in ("harmony", "llama3", "pythonic") else "Let me see.\n"
    text = before + FORMATS[name].render(wanted)
    for at in range(len(text)):
        parts = parse(name, [text[:at], text[at:]])
        assert understood(parts) == wanted, text[:at]
        assert gathered(parts)[0] == before.strip()


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_malformed_output_never_raises(name: str, data: st.DataObject) -> None:
    format_ = FORMATS[name]
    valid = format_.render([("search", {"query": "x", "limit": 1}), ("now", {})])
    parts = [*format_.markers, valid, valid[: len(valid) // 2], valid[len(valid) // 3 :]]
    parts += ['{"name": "search"', '"arguments": ', "search", *'{}[]"\\,>\nx']
    pieces = data.draw(st.lists(st.sampled_from(parts) | st.text(max_size=5), max_size=12))
    whole = gathered(parse(name, ["".join(pieces)]))
    assert gathered(parse(name, pieces)) == whole
    assert gathered(parse(name, list("".join(pieces)))) == whole
    assert all(called in SCHEMAS for called, _ in whole[2])


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_tool_is_text(name: str) -> None:
    text = FORMATS[name].render([("launch", {"query": "x"})])
    shown, _, found = gathered(parse(name, list(text)))
    assert found == []
    assert "launch" in shown or name == "harmony"
    if name != "harmony":
        assert shown == text.strip("\n") or shown == text


@pytest.mark.parametrize("name", FORMATS)
@given(text=plain_text)
@settings(max_examples=30, deadline=None)
def test_text_without_marks_stays_as_it_is(name: str, text: str) -> None:
    if any(mark in text for mark in "<[{"):
        return
    assert gathered(parse(name, list(text)))[0].strip() == text.strip()


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_cut_off_keeps_what_was_told(name: str) -> None:
    text = FORMATS[name].render([("search", {"query": "abcdefgh", "limit": 3})])
    for at in range(len(text)):
        for called, arguments in gathered(parse(name, [text[:at]]))[2]:
            assert called == "search"
            assert '{"query": "abcdefgh", "limit": 3}'.startswith(arguments.rstrip()) or json.loads(arguments)


def test_arguments_are_streamed_as_they_come() -> None:
    pieces = ['<tool_call>\n{"name": "search", "arguments": {"que', 'ry": "a ', 'b"}}\n</tool_call>']
    reader = Reader(SCHEMAS, Ids())
    script = Script(reader, AnswerForm(FORMATS["hermes"]).read(reader, "apart"))
    told = [script.push(piece) for piece in pieces]
    assert told[0] == [ToolCallBegun(0, "id1", "search"), ToolArguments(0, '{"que')]
    assert told[1] == [ToolArguments(0, 'ry": "a ')]
    assert told[2] == [ToolArguments(0, 'b"}')]
    assert script.finish() == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"arguments": {"query": "a"}, "id": 7, "name": "search"}</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "search", "arguments": "{\\"query\\": \\"a\\"}"}\n</tool_call>'),
        ("hermes", '<tool_call>[{"name": "search", "arguments": {"query": "a"}}]</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "search", "arguments": {"query": "a"}}'),
        ("json", '{"name": "search", "parameters": {"query": "a"}}'),
        ("json", '```json\n{"function": "search", "args": {"query": "a"}}\n```'),
        ("llama3", '<|python_tag|>{"name": "search", "parameters": {"query": "a"}}'),
        ("pythonic", "[search(query='a')]"),
        ("mistral", '[TOOL_CALLS]search[CALL_ID]abc[ARGS]{"query": "a"}'),
        (
            "kimi",
            '<|tool_call_begin|>functions.search:3<|tool_call_argument_begin|>{"query": "a"}',
        ),
        ("qwen_coder", "<function=search>\n<parameter=query>\na\n</parameter>\n</function>\n</tool_call>"),
        ("glm", "<tool_call>search\n<arg_key>query</arg_key><arg_value>a</arg_value></tool_call>"),
        (
            "harmony",
            HARMONY_AFTER_THOUGHT,
        ),
    ],
)
def test_variants_of_models_are_understood(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert understood(parse(name, pieces)) == [("search", {"query": "a"})]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", r'<tool_call>{"arguments": {"query": "\ud83d"}, "name": "search"}</tool_call>'),
        ("hermes", r'<tool_call>{"name": "search", "arguments": "{\"query\": \"\ud83d\"}"}</tool_call>'),
        ("pythonic", r'[search(query="\ud83d")]'),
        ("glm", '<tool_call>search\n<arg_key>tags</arg_key><arg_value>["\\ud83d"]</arg_value></tool_call>'),
    ],
)
def test_arguments_can_always_be_sent(name: str, text: str) -> None:
    """JSON and Python can spell half of a surrogate pair; UTF-8 cannot."""
    ((_, arguments),) = gathered(parse(name, [text]))[2]
    (value,) = json.loads(arguments.encode()).values()
    assert value in ("\ud83d", ["\ud83d"])


def test_harmony_tells_its_channels_apart() -> None:
    text = (
        "<|channel|>analysis<|message|>Tides.<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "I look it up.<|end|><|start|>assistant<|channel|>final<|message|>Noon."
    )
    for pieces in ([text], list(text)):
        assert gathered(parse("harmony", pieces)) == ("I look it up.Noon.", "Tides.", [])
    assert gathered(parse("harmony", ["Just text"])) == ("Just text", "", [])


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nso", False, ("so", "why")),
        ("why\n</think>\n\nso", True, ("so", "why")),
        ("so </think> what", False, ("so </think> what", "")),
        ("<think>\n\n</think>\n\nso", False, ("so", "")),
        ("<think>never ends", False, ("", "never ends")),
        (" so", False, (" so", "")),
    ],
)
def test_thoughts_are_told_apart(text: str, opened: bool, expected: tuple[str, str]) -> None:
    for pieces in ([text], list(text)):
        assert gathered(parse(None, pieces, thinking=THINK, opened=opened))[:2] == expected


def test_thoughts_can_stay_in_the_text() -> None:
    pieces = list("<think>why</think>so")
    assert gathered(parse(None, pieces, thinking=THINK, style="text")) == ("<think>why</think>so", "", [])
    assert gathered(parse(None, pieces, thinking=THINK, style="both")) == ("<think>why</think>so", "why", [])


def test_a_call_in_thoughts_is_none() -> None:
    call = FORMATS["hermes"].render([("now", {})])
    parts = parse("hermes", [f"<think>{call}</think>\n{call}"], thinking=THINK)
    assert gathered(parts) == ("", call, [("now", "{}")])
