"""JSON schemas as clients send them: those that output is held to, and those that are refused."""

from typing import Any


def obj(
    properties: dict[str, Any], /, more: dict[str, Any] | None = None, *, required: list[str] | None = None
) -> dict[str, Any]:
    """A closed object, all of it required unless stated otherwise."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
        **(more or {}),
    }


def short(most: int = 8, **more: Any) -> dict[str, Any]:
    """A string that a small model can end."""
    return {"type": "string", "maxLength": most, **more}


def few(items: Any, most: int = 2, **more: Any) -> dict[str, Any]:
    """An array that ends soon."""
    return {"type": "array", "items": items, "maxItems": most, **more}


FLAG = {"type": "boolean"}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
POINT = obj({"x": DIGIT, "y": DIGIT})
CAT = obj({"kind": {"const": "cat"}, "lives": DIGIT})
DOG = obj({"kind": {"const": "dog"}, "tame": FLAG})

SCHEMAS: dict[str, Any] = {
    # scalars
    "boolean": FLAG,
    "null": {"type": "null"},
    "integer": {"type": "integer", "minimum": -50, "maximum": 50},
    "large integers": {"type": "integer", "minimum": 1_000_000, "maximum": 2_000_000},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "short string": short(5),
    "long enough string": {"type": "string", "minLength": 3, "maxLength": 6},
    "very long limit": obj({"note": {"type": "string", "maxLength": 50_000, "pattern": "^[a-c]{2}$"}}),
    "several types": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    # enumerations
    "enum of strings": {"enum": ["red", "green", "blue"]},
    "enum of anything": {"enum": ["red", 3, None, 2.5]},
    "enum of objects": {"enum": [{"a": 1}, {"b": [2]}]},
    "typed enum": {"type": "string", "enum": ["a", "b"]},
    "nullable enum": {"type": ["string", "null"], "enum": ["a", None]},
    "const": {"const": {"ok": True, "items": [1, "two"]}},
    "unicode enum": {"enum": ["søt", "日本", "🙂"]},
    "escaped enum": {"enum": ['say "hi"', "back\\slash", "line\nbreak"]},
    # patterns and formats
    "pattern": {"type": "string", "pattern": "^[A-C]{3}-[0-9]{2}$"},
    "pattern with a choice": {"type": "string", "pattern": "^(yes|no|[0-9]{2})$"},
    "pattern within": {"type": "string", "pattern": "[0-9]{3}", "maxLength": 6},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "duration": {"type": "string", "format": "duration"},
    "email": obj({"to": {"type": "string", "format": "email"}}),
    "hostname": {"type": "string", "format": "hostname"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "unknown format": {"type": "string", "format": "file-path", "maxLength": 8},
    # objects
    "empty object": obj({}),
    "flat object": obj({"name": short(), "age": DIGIT, "tame": FLAG}),
    "optional members": obj({"a": DIGIT, "b": DIGIT, "c": FLAG}, required=["b"]),
    "nothing required": obj({"a": DIGIT, "b": FLAG}, required=[]),
    "at least one of two": obj({"a": DIGIT, "b": FLAG}, required=[], more={"minProperties": 1}),
    "nested": obj({"a": obj({"b": obj({"c": obj({"d": FLAG})})})}),
    "quoted names": obj({'with "quotes"': FLAG, "with space": DIGIT, "ünï": FLAG}),
    "a member named format": obj({"format": short(4), "type": short(4), "enum": FLAG}),
    "map": {"type": "object", "additionalProperties": DIGIT, "minProperties": 1, "maxProperties": 2},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^[a-c]$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "annotations": obj(
        {"a": short(4, title="A", description="first", default="x", examples=["y"], deprecated=True)},
        {"title": "Annotated", "description": "with words"},
    ),
    # arrays
    "array": few(DIGIT, 3),
    "array of objects": few(POINT),
    "array of arrays": few(few(DIGIT)),
    "bounded array": few(FLAG, 3, minItems=2),
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, short(4)], "items": False, "minItems": 2},
    "old tuple": {"type": "array", "prefixItems": [FLAG, DIGIT], "items": FLAG, "minItems": 2, "maxItems": 3},
    "empty array": few(DIGIT, 0),
    # unions
    "anyOf scalars": {"anyOf": [short(4), DIGIT, {"type": "null"}]},
    "anyOf objects": {"anyOf": [CAT, DOG]},
    "nullable object": {"anyOf": [POINT, {"type": "null"}]},
    "oneOf that cannot overlap": {"oneOf": [CAT, DOG]},
    "oneOf types": {"oneOf": [short(4), DIGIT]},
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": DIGIT}, "required": ["a"]},
            obj({"a": {"type": "integer"}, "b": FLAG}),
        ]
    },
    "allOf of bounds": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    "union in an array": few({"anyOf": [DIGIT, FLAG]}, 3),
    "union of arrays": {"anyOf": [few(DIGIT), few(FLAG)]},
    # references
    "ref": obj({"left": {"$ref": "#/$defs/p"}, "right": {"$ref": "#/$defs/p"}}, {"$defs": {"p": POINT}}),
    "old definitions": {"definitions": {"p": POINT}, "$ref": "#/definitions/p"},
    "ref to ref": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": DIGIT}, "$ref": "#/$defs/a"},
    "anchor": obj({"a": {"$ref": "#here"}}, {"$defs": {"h": {"$anchor": "here", **FLAG}}}),
    "escaped ref": obj({"a": {"$ref": "#/$defs/x~1y"}}, {"$defs": {"x/y": FLAG}}),
    "ref beside keywords": obj(
        {"a": {"$ref": "#/$defs/d", "description": "a digit"}}, {"$defs": {"d": DIGIT}}
    ),
    # recursion
    "tree": {
        "$defs": {"tree": obj({"v": DIGIT, "c": few({"$ref": "#/$defs/tree"}, 1)})},
        "$ref": "#/$defs/tree",
    },
    "root recursion": obj({"v": FLAG, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}),
    "mutual recursion": {
        "$defs": {
            "a": obj({"b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}]}}),
            "b": obj({"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}),
        },
        "$ref": "#/$defs/a",
    },
    # as clients make them
    "steps of a solution": obj(
        {"steps": few(obj({"explanation": short(12), "output": short(12)})), "final_answer": short(8)}
    ),
    "pydantic": {
        "$defs": {"Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"}},
        "properties": {
            "color": {"$ref": "#/$defs/Color"},
            "size": {"anyOf": [DIGIT, {"type": "null"}], "default": None, "title": "Size"},
        },
        "required": ["color"],
        "title": "Shirt",
        "type": "object",
        "additionalProperties": False,
    },
    "user interface": {
        "$defs": {
            "item": obj({"type": {"enum": ["div", "button"]}, "items": few({"$ref": "#/$defs/item"}, 1)})
        },
        **obj({"root": {"$ref": "#/$defs/item"}}),
    },
    "moderation": obj({"violation": FLAG, "category": {"type": ["string", "null"], "enum": ["spam", None]}}),
    "draft 7": {"$schema": "http://json-schema.org/draft-07/schema#", **obj({"a": FLAG})},
}

REFUSED: dict[str, tuple[Any, str]] = {
    "not": ({"not": {"type": "null"}}, "not"),
    "if": (
        obj({"a": FLAG}, {"if": {"properties": {"a": {"const": True}}}, "then": {"maxProperties": 1}}),
        "if",
    ),
    "unique items": (few(DIGIT, uniqueItems=True), "uniqueItems"),
    "contains": ({"type": "array", "contains": {"const": 1}}, "contains"),
    "property names": ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
    "dependent required": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "unevaluated": ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    "oneOf that can overlap": (
        {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 10}]},
        "oneOf",
    ),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    "count beside open members": ({"properties": {"a": FLAG}, "minProperties": 1}, "Properties"),
    "a schema elsewhere": ({"$ref": "https://127.0.0.1:1/schema.json"}, "does not fetch"),
    "a missing definition": ({"$ref": "#/$defs/gone"}, "gone"),
    "false": (False, "allows no answer"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "no schema": ({"type": "thing"}, "not a valid JSON schema at type"),
}
