"""Schemas and grammars that clients send: what is wrong with them, and what the engine is told."""

import functools
import json
import re
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError

from astraea_local.api.errors import ApiError
from astraea_local.api.limits import check_schema
from astraea_local.engine.binding import (
    BindingError,
    Grammar,
    Vocab,
    json_grammar,
    schema_fault,
)

# llama.cpp reads groups and rules recursively: far deeper ones overflow the stack of the whole process.
_MAX_NESTING = 5000
# The formats that llguidance enforces; others are annotations, as JSON Schema itself has it.
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri unknown".split())
# Below these stand values, not schemas.
_DATA_KEYS = frozenset(("enum", "const", "default", "examples"))


class SchemaFault(Exception):
    """A schema that output cannot be held to; the message says why."""


def schema_grammar(schema: Any, *, lenient: bool = False) -> str:
    """The schema as llguidance reads it after `%json`. Raises `SchemaFault` naming what cannot be enforced.

    `lenient` ignores unknown keywords, and takes `oneOf` for `anyOf`.
    """
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise SchemaFault("the schema is nested too deeply") from None
    fault, grammar = _compiled(text, lenient)
    if fault:
        raise SchemaFault(fault)
    return grammar


def answer_schema(schema: Any, param: str) -> str:
    """The grammar of an answer that is nothing but JSON. Raises `ApiError` for the named field."""
    check_schema(schema, param)
    try:
        return schema_grammar(schema)
    except SchemaFault as fault:
        raise ApiError(400, f"{param}: {fault}", param=param, code="invalid_json_schema") from None


def checked_gbnf(vocab: Vocab, gbnf: str) -> str:
    """A client's own grammar, tried out. Raises `ApiError`."""
    if _nesting(gbnf) > _MAX_NESTING:
        raise ApiError(400, "grammar: nested too deeply", param="grammar", code="invalid_grammar")
    try:
        Grammar(vocab, gbnf).close()
    except UnicodeEncodeError as error:
        text = "grammar: half of a surrogate pair is not a character"
        raise ApiError(400, text, param="grammar", code="invalid_grammar") from error
    except BindingError as error:
        raise ApiError(400, f"grammar: {error}", param="grammar", code="invalid_grammar") from error
    return gbnf


@functools.lru_cache(maxsize=512)
def _compiled(text: str, lenient: bool) -> tuple[str, str]:
    """Fault and grammar; remembered, because agents send the same tools with every request."""
    schema = json.loads(text)
    if schema is False:
        return "the schema false allows no answer", ""
    schema = {} if schema is True else schema
    try:
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(
            schema
        )
        grammar = json_grammar(_without_annotations(schema), lenient=lenient)
    except RecursionError:
        return "the schema is nested too deeply", ""
    except SchemaError as error:
        where = ".".join(str(p) for p in error.absolute_path)
        return f"not a valid JSON schema{f' at {where}' if where else ''}: {error.message}", ""
    fault = schema_fault(grammar)
    return ("", grammar) if fault is None else (_explained(fault), "")


def _explained(fault: str) -> str:
    if fault.startswith("Unimplemented keys:"):
        keys = ", ".join(re.findall(r'"([^"]+)"', fault))
        return f"output cannot be held to {keys}: leave it out, or say it in the description"
    if fault.startswith("oneOf"):
        return "output cannot be held to oneOf where its options may overlap: use anyOf"
    if "recursion limit" in fault:
        return "the schema is nested too deeply"
    return f"output cannot be held to this schema: {' '.join(fault.split())}"


def _without_annotations(schema: Any) -> Any:
    """The schema without formats that nothing checks."""
    if isinstance(schema, list):
        return [_without_annotations(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value if key in _DATA_KEYS else _without_annotations(value)
        for key, value in schema.items()
        if not (key == "format" and isinstance(value, str) and value not in _FORMATS)
    }


def _nesting(gbnf: str) -> int:
    """A bound on how deeply a grammar's groups, or its rules in one another, can be nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[()]", gbnf):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    return max(deepest, gbnf.count("::="))
