"""What the grammars of schemas allow, on the vocabulary of SmolLM2."""

import calendar
import json

import jsonschema
import numpy as np
import pytest

from astraea_local.api.constraints import SchemaFault, schema_grammar
from astraea_local.engine.binding import Guides, Vocab
from tests.api.format_checks import FORMATS
from tests.api.grammars import follows, walk

FLAG = {"type": "boolean"}


@pytest.mark.parametrize("name", "date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
def test_a_format_holds_and_has_an_end(guides: Guides, vocab: Vocab, name: str) -> None:
    schema = {"type": "string", "format": name} | ({"maxLength": 40} if name == "uri" else {})
    rng = np.random.default_rng(5)
    for _ in range(40):
        text = walk(guides, vocab, f"start: %json {schema_grammar(schema)}\n", rng)
        jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)


@pytest.mark.parametrize(("name", "time"), [("date", ""), ("date-time", "T12:00:00Z")])
def test_every_year_has_its_own_february(guides: Guides, vocab: Vocab, name: str, time: str) -> None:
    grammar = f"start: %json {schema_grammar({'type': 'string', 'format': name})}\n"
    for year in (*range(1895, 2105), 4, 100, 400, 9996, 9999):
        assert follows(guides, vocab, grammar, f'"{year:04}-02-29{time}"') is calendar.isleap(year), year
        assert follows(guides, vocab, grammar, f'"{year:04}-02-28{time}"'), year


@pytest.mark.parametrize(
    ("schema", "fits", "fails"),
    [
        ({"format": "email", "maxLength": 5}, "a@b.c", "aa@b.c"),
        ({"format": "email", "pattern": "^a"}, "a@b.c", "b@b.c"),
        ({"format": "date", "pattern": "^2024"}, "2024-02-29", "2023-01-01"),
        ({"format": "date", "allOf": [{"pattern": "1$"}]}, "2023-01-01", "2023-01-02"),
    ],
)
def test_what_a_format_adds_takes_nothing_away(
    guides: Guides, vocab: Vocab, schema: dict[str, object], fits: str, fails: str
) -> None:
    grammar = f"start: %json {schema_grammar({'type': 'string', **schema})}\n"
    assert follows(guides, vocab, grammar, json.dumps(fits))
    assert not follows(guides, vocab, grammar, json.dumps(fails))


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        ({"properties": {"a": FLAG}}, False),
        ({"properties": {"o": {"properties": {"a": FLAG}}, "a": FLAG}}, False),
        ({"properties": {"a": FLAG}, "additionalProperties": True}, True),
        ({"properties": {"a": FLAG}, "required": ["b"]}, True),
        ({}, True),
        ({"allOf": [{"properties": {"a": FLAG}}, {"properties": {"b": FLAG}}]}, True),
        ({"properties": {"a": FLAG}, "anyOf": [{"required": ["b"]}, {"properties": {"b": FLAG}}]}, True),
        ({"$defs": {"p": {"properties": {"a": FLAG}}}, "$ref": "#/$defs/p", "properties": {"b": FLAG}}, True),
    ],
)
def test_an_object_has_no_member_that_nobody_named(
    guides: Guides, vocab: Vocab, schema: dict[str, object], more: bool
) -> None:
    grammar = f"start: %json {schema_grammar({'type': 'object', **schema})}\n"
    assert follows(guides, vocab, grammar, '{"a": true, "b": true}') is more
    if not more:
        assert follows(guides, vocab, grammar, '{"a": true}')


def test_a_member_may_be_named_like_a_keyword() -> None:
    annotated = {"type": "string", "format": "file-path"}
    members = dict.fromkeys(("default", "const", "enum", "properties", "format", "not"), annotated)
    assert "file-path" not in schema_grammar({"type": "object", "properties": members})


def test_an_address_longer_than_there_is_one_is_refused() -> None:
    with pytest.raises(SchemaFault, match="minLength"):
        schema_grammar({"type": "string", "format": "email", "minLength": 300})
