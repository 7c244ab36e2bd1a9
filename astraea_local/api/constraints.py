"""Schemas and grammars that clients send: what is wrong with them, and what the engine is told."""

import functools
import json
import re
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError

from astraea_local.api.errors import ApiError
from astraea_local.api.limits import MAX_SCHEMA_BYTES, check_schema
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
# Most characters of formats in which llguidance allows more than RFC 5321 and RFC 1123, or digits without end
# before something that has to follow: a small model would never come to that, and nobody needs more of them.
_LONGEST = {"email": 254, "hostname": 253, "duration": 32, "time": 24, "date-time": 35}
# Its years all have a 29th of February.
_LEAP = "(?:(?:[02468][048]|[13579][26])00|[0-9]{2}(?:0[48]|[2468][048]|[13579][26]))"
_DAYS = f"^(?:[0-9]{{4}}-(?:0[13-9]|1[0-2]|02-[01]|02-2[0-8])|{_LEAP}-02-29)"
# Below these stand values, not schemas, and below those schemas by names, which may be any keyword.
_DATA = frozenset(("enum", "const", "default", "examples"))
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions"))
# Keywords of objects that may have members without a name.
_OPEN = frozenset("additionalProperties patternProperties unevaluatedProperties minProperties $ref".split())
# Keywords that describe more of the object beside them.
_MORE = frozenset(("$ref", "anyOf", "oneOf"))
# What is compiled of a longer schema is not kept: anybody may send many of them.
_KEPT_BYTES = 16 << 10


class SchemaFault(Exception):
    """A schema that output cannot be held to; the message says why."""


def schema_grammar(schema: Any, *, lenient: bool = False) -> str:
    """The schema as llguidance reads it after `%json`. Raises `SchemaFault` naming what cannot be enforced.

    `lenient` ignores unknown keywords, and takes `oneOf` for `anyOf`. Where a schema leaves open whether an
    object may have further members it gets none: small models would invent some, and functions refuse them.
    """
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise SchemaFault("the schema is nested too deeply") from None
    fault, grammar = (_remembered if len(text) <= _KEPT_BYTES else _compiled)(text, lenient)
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
    if len(gbnf) > MAX_SCHEMA_BYTES:
        text = f"grammar: has more than {MAX_SCHEMA_BYTES:,} characters"
        raise ApiError(400, text, param="grammar", code="invalid_grammar")
    try:
        Grammar(vocab, gbnf).close()
    except UnicodeEncodeError as error:
        text = "grammar: half of a surrogate pair is not a character"
        raise ApiError(400, text, param="grammar", code="invalid_grammar") from error
    except BindingError as error:
        raise ApiError(400, f"grammar: {error}", param="grammar", code="invalid_grammar") from error
    return gbnf


def _compiled(text: str, lenient: bool) -> tuple[str, str]:
    """Fault and grammar."""
    schema = json.loads(text)
    if schema is False:
        return "the schema false allows no answer", ""
    schema = {} if schema is True else schema
    try:
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(
            schema
        )
        grammar = json_grammar(_enforceable(schema, close=not _is_composed(schema)), lenient=lenient)
    except RecursionError:
        return "the schema is nested too deeply", ""
    except SchemaError as error:
        where = ".".join(str(p) for p in error.absolute_path)
        return f"not a valid JSON schema{f' at {where}' if where else ''}: {error.message}", ""
    fault = schema_fault(grammar)
    return ("", grammar) if fault is None else (_explained(fault), "")


# Agents send the same tools with every request.
_remembered = functools.lru_cache(maxsize=512)(_compiled)


def _explained(fault: str) -> str:
    if fault.startswith("Unimplemented keys:"):
        keys = ", ".join(re.findall(r'"([^"]+)"', fault))
        return f"output cannot be held to {keys}: leave it out, or say it in the description"
    if fault.startswith("oneOf"):
        return "output cannot be held to oneOf where its options may overlap: use anyOf"
    if "recursion limit" in fault:
        return "the schema is nested too deeply"
    return f"output cannot be held to this schema: {' '.join(fault.split())}"


def _enforceable(schema: Any, *, close: bool) -> Any:
    """The schema without formats that nothing checks, and with what llguidance lacks of the others.

    With `close` objects have no members but those that they name, unless they say otherwise.
    """
    if isinstance(schema, list):
        return [_enforceable(item, close=close) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            made[key] = {name: _enforceable(part, close=close) for name, part in value.items()}
        else:
            made[key] = value if key in _DATA else _enforceable(value, close=close)
    if close and _names_all(schema):
        made["additionalProperties"] = False
    name = schema.get("format")
    if name in _LONGEST:
        made["maxLength"] = min(_LONGEST[name], schema.get("maxLength", _LONGEST[name]))
    if name in ("date", "date-time"):
        made["allOf"] = [*made.get("allOf", []), {"pattern": _DAYS}]
    if name not in _FORMATS:
        made.pop("format", None)
    return made


def _names_all(schema: dict[str, Any]) -> bool:
    """Whether an object fits without members that the schema does not name."""
    members = schema.get("properties")
    return (
        isinstance(members, dict)
        and _OPEN.isdisjoint(schema)
        and all(name in members for name in schema.get("required", ()))
    )


def _is_composed(schema: Any) -> bool:
    """Whether an object may be described in several places, of which none names all of its members."""
    if isinstance(schema, list):
        return any(map(_is_composed, schema))
    if not isinstance(schema, dict):
        return False
    composed = "allOf" in schema or ("properties" in schema and not _MORE.isdisjoint(schema))
    return composed or any(map(_is_composed, schema.values()))


def _nesting(gbnf: str) -> int:
    """A bound on how deeply a grammar's groups, or its rules in one another, can be nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[()]", gbnf):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    return max(deepest, gbnf.count("::="))
