"""Arguments one by one, for formats that do not write them as one JSON object."""

from collections.abc import Mapping
from typing import Any

# Keywords with which arguments that fit one by one fit the whole.
_PLAIN = frozenset(
    "type properties required additionalProperties $defs definitions title description $schema".split()
)
_SHARED = ("$defs", "definitions")
# Keywords with which any text is a valid string.
_ANNOTATIONS = frozenset("type title description default examples $comment deprecated".split())


def is_plain_object(schema: Mapping[str, Any]) -> bool:
    """Whether arguments that fit one by one fit the whole."""
    properties = schema.get("properties") or {}
    return (
        set(schema) <= _PLAIN
        and all(isinstance(p, dict) for p in properties.values())
        and set(schema.get("required") or ()) <= set(properties)
    )


def property_schema(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The schema of one argument, with the definitions that it may refer to."""
    properties = schema.get("properties")
    part = properties.get(name) if isinstance(properties, dict) else None
    if not isinstance(part, dict):
        return {}
    return {**part, **{key: schema[key] for key in _SHARED if key in schema}}


def kinds(schema: Any) -> set[str]:
    """The types that a schema may allow, as far as it says them itself."""
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    found = {k for k in (kind if isinstance(kind, list) else [kind]) if isinstance(k, str)}
    for option in _options(schema):
        found |= kinds(option)
    if not found and any(isinstance(v, str) for v in _values(schema)):
        found.add("string")
    return found


def takes_any_text(schema: Mapping[str, Any]) -> bool:
    """Whether any text, as it stands, is a valid value."""
    own = {k for k in schema if k not in ("anyOf", "oneOf", *_SHARED)}
    if not own <= _ANNOTATIONS:
        return False
    options = _options(schema)
    if options:
        return any(isinstance(o, dict) and takes_any_text(o) for o in options)
    return "string" in kinds(schema)


def words(schema: Mapping[str, Any]) -> list[str] | None:
    """The texts of an enumeration of strings, None where it is something else."""
    values = _values(schema)
    return list(values) if values and all(isinstance(v, str) for v in values) else None


def _options(schema: Mapping[str, Any]) -> list[Any]:
    return [o for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for o in schema[key]]


def _values(schema: Mapping[str, Any]) -> list[Any]:
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return values if isinstance(values, list) else []
