"""Finds out what a chat template can show, by rendering short conversations with it."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from astraea_local.api.errors import ApiError
from astraea_local.api.template_messages import Plain, Traits, short_id

Render = Callable[[list[Plain], list[dict[str, Any]] | None], str]

# Words that no template contains.
_TOOL, _KEY, _VALUE, _RESULT, _SYSTEM = "zqtool", "zqkey", "zqvalue", "zqresult", "zqsystem"
_USER = {"role": "user", "content": "hello"}
# Thoughts have other names in some templates; calls without them look there first.
_THOUGHTS = re.compile(r"message\.thinking\b|message\[['\"]thinking['\"]\]")
# Arguments as a JSON text within JSON, or in Python's notation.
_DISTORTED = re.compile(rf"\\\"{_KEY}\\\"|'{_KEY}'\s*:\s*'{_VALUE}'")


def find_traits(render: Render, source: str) -> Traits:
    """The traits of a template; one that fails at everything has none."""
    bare: list[dict[str, Any]] | None = None
    if not _try(render, [_USER], None) and _try(render, [_USER], []):
        bare = []
    undescribed = _TOOL in _try(render, [_USER], [_definition(described=False)])
    definition = _definition(described=True)
    tools = _TOOL in _try(render, [_USER], [definition])
    found = Traits(
        system=_SYSTEM in _try(render, [_system(1), _USER], bare),
        late_system=_repeats(_try(render, [_system(1), _USER, _system(2), _USER], bare)),
        tools=tools,
        described=tools and not undescribed,
        bare_list=bare is not None,
        thoughts_key="thinking" if _THOUGHTS.search(source) else "reasoning_content",
    )
    given = [definition] if tools else bare
    for as_object, short in itertools.product((True, False), (False, True)):
        trait = replace(found, calls=True, object_arguments=as_object, short_ids=short)
        if _shows(_try(render, _called(trait, 1), given), 1):
            return replace(
                trait,
                several_calls=_shows(_try(render, _called(trait, 2), given), 2),
                text_hides_calls=not _shows(_try(render, _called(trait, 1, "zqtext"), bare), 1),
            )
    return found


def _definition(*, described: bool) -> dict[str, Any]:
    about = {"description": "zqabout"} if described else {}
    parameters = {"type": "object", "properties": {_KEY: {"type": "string", **about}}, "required": [_KEY]}
    function = {"name": _TOOL, "description": "zqdescription", "parameters": parameters}
    return {"type": "function", "function": function}


def _system(number: int) -> Plain:
    return {"role": "system", "content": f"{_SYSTEM}{number}"}


def _repeats(text: str) -> bool:
    return f"{_SYSTEM}1" in text and f"{_SYSTEM}2" in text


def _called(traits: Traits, count: int, text: str = "") -> list[Plain]:
    arguments: Any = {_KEY: _VALUE}
    calls = [
        {
            "id": short_id(f"call_{number}") if traits.short_ids else f"call_{number}",
            "type": "function",
            "function": {
                "name": _TOOL,
                "arguments": arguments if traits.object_arguments else json.dumps(arguments),
            },
        }
        for number in range(count)
    ]
    results = [
        {"role": "tool", "content": f"{_RESULT}{number}", "tool_call_id": call["id"], "name": _TOOL}
        for number, call in enumerate(calls)
    ]
    return [_USER, {"role": "assistant", "content": text, "tool_calls": calls}, *results]


def _shows(text: str, count: int) -> bool:
    """Whether calls and results stand there, and the arguments not as text within text."""
    return (
        text.count(_VALUE) >= count
        and not _DISTORTED.search(text)
        and all(f"{_RESULT}{number}" in text for number in range(count))
    )


def _try(render: Render, messages: list[Plain], tools: list[dict[str, Any]] | None) -> str:
    try:
        return render(messages, tools)
    except ApiError:
        return ""
