"""Whatever a grammar of forced calls allows is read as calls that fit: answers taken from it at random."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from astraea_local.api.constraints import schema_grammar
from astraea_local.api.parts import ToolArguments, ToolCallBegun
from astraea_local.api.tool_formats.base import Tool
from astraea_local.api.tool_formats.lark import MAX_CALLS
from astraea_local.api.tool_formats.reader import Reader, Script
from astraea_local.api.tool_formats.registry import FORMATS
from astraea_local.api.tool_formats.thinking import AnswerForm, Wanted
from astraea_local.engine.binding import Guides, Vocab
from tests.api.grammars import walk

# All of it ends by itself: no thoughts, no text of any length.
WITHOUT_END = {"harmony"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "limit": {"type": "integer", "minimum": 1, "maximum": 99},
        "order": {"enum": ["new", "old"]},
        "exact": {"type": "boolean"},
    },
    "required": ["limit", "order"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"search": SCHEMA, "now": NOTHING}
TOOLS = [Tool(name, schema, schema_grammar(schema)) for name, schema in SCHEMAS.items()]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - WITHOUT_END))
def test_forced_answers_are_calls_that_fit(guides: Guides, vocab: Vocab, name: str) -> None:
    form = AnswerForm(FORMATS[name])
    grammar = form.grammar(Wanted(tools=TOOLS, must_call=True), {}, exact=True)
    rng = np.random.default_rng(7)
    counts = set()
    for _ in range(8):
        reader = Reader(SCHEMAS, lambda: "id")
        script = Script(reader, form.read(reader, "apart"))
        calls: list[tuple[str, str]] = []
        for part in script.push(walk(guides, vocab, grammar, rng)) + script.finish():
            if isinstance(part, ToolCallBegun):
                calls.append((part.name, ""))
            else:
                assert isinstance(part, ToolArguments), part
                calls[-1] = calls[-1][0], calls[-1][1] + part.fragment
        for called, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[called])
        counts.add(len(calls))
    assert 1 <= min(counts) <= max(counts) <= MAX_CALLS
