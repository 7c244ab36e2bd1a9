import os
from pathlib import Path
from typing import Any

import pytest

from astraea_local.api.schemas import Message
from astraea_local.api.templates import ChatTemplate

FOLDER = Path(os.environ.get("ASTRAEA_TEMPLATES", "/nonexistent"))
if not FOLDER.is_dir():
    pytest.skip(
        "ASTRAEA_TEMPLATES names no folder of .jinja files, such as llama.cpp's models/templates",
        allow_module_level=True,
    )
TEMPLATES = sorted(FOLDER.glob("*.jinja"))

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    for name in ("forecast", "tide_table")
]


def called(*names: str, content: str | None = None) -> Message:
    calls: list[dict[str, Any]] = [
        {
            "id": f"call_{name}",
            "type": "function",
            "function": {"name": name, "arguments": '{"city": "Oslo"}'},
        }
        for name in names
    ]
    return Message(role="assistant", content=content, tool_calls=calls)


def result(name: str, text: str) -> Message:
    return Message(role="tool", tool_call_id=f"call_{name}", content=text)


CONVERSATIONS: dict[str, list[Message]] = {
    "system": [Message(role="system", content="SYSTEM"), Message(role="user", content="ASKED")],
    "a call": [Message(role="user", content="ASKED"), called("forecast"), result("forecast", "SUNNY")],
    "a call with text": [
        Message(role="user", content="ASKED"),
        called("forecast", content="LOOKING"),
        result("forecast", "SUNNY"),
        Message(role="assistant", content="ANSWER"),
        Message(role="user", content="THANKS"),
    ],
    "two calls": [
        Message(role="user", content="ASKED"),
        called("forecast", "tide_table"),
        result("forecast", "SUNNY"),
        result("tide_table", "HIGH"),
    ],
    "thoughts": [
        Message(role="user", content="ASKED"),
        Message(role="assistant", content="ANSWER", reasoning_content="HMM"),
        Message(role="user", content="AGAIN"),
    ],
    "thoughts before a call": [
        Message(role="user", content="ASKED"),
        called("forecast").model_copy(update={"reasoning_content": "HMM"}),
        result("forecast", "SUNNY"),
    ],
    "null content": [
        Message(role="user", content="ASKED"),
        Message(role="assistant", content=None),
        Message(role="user", content="AGAIN"),
    ],
    "users in a row": [
        Message(role="user", content="ASKED"),
        Message(role="user", content="AGAIN"),
        Message(role="developer", content="LATE"),
        Message(role="user", content="MORE"),
    ],
    "an empty result": [Message(role="user", content="ASKED"), called("forecast"), result("forecast", "")],
    "broken arguments": [
        Message(role="user", content="ASKED"),
        Message(
            role="assistant",
            tool_calls=[{"function": {"name": "forecast", "arguments": '{"city": "Os'}}],
        ),
        Message(role="tool", content="SUNNY"),
    ],
}
SAID = ("SYSTEM", "ASKED", "AGAIN", "LATE", "MORE", "LOOKING", "SUNNY", "HIGH", "THANKS")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
@pytest.mark.parametrize("with_tools", [True, False], ids=["tools", "no tools"])
def test_everything_that_is_said_is_rendered(path: Path, with_tools: bool) -> None:
    template = ChatTemplate(path.read_text(), bos="<s>", eos="</s>")
    for name, messages in CONVERSATIONS.items():
        prompt = template.render(messages, tools=TOOLS if with_tools else None)
        said = [m.text for m in messages if m.text in SAID]
        missing = [text for text in said if text and text not in prompt]
        # Some show what stands beside a call nowhere.
        assert [m for m in missing if m != "LOOKING"] == [], f"{name}: {prompt}"
        for message in messages:
            for call in message.tool_calls or ():
                assert call["function"]["name"] in prompt, f"{name}: {prompt}"
        if with_tools:
            assert "tide_table" in prompt, f"{name}: {prompt}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_calls_are_read_as_the_template_writes_them(path: Path) -> None:
    template = ChatTemplate(path.read_text(), bos="<s>", eos="</s>")
    if not template.traits.calls or template.tool_format.name == "json":
        pytest.skip("its calls are not shown, or in no format that we know")
    arguments = {"city": "Oslo"}
    prompt = template.render(CONVERSATIONS["a call"], tools=TOOLS)
    written = template.tool_format.render([("forecast", arguments)])
    core = written.partition("forecast")[2].partition("Oslo")[0]
    if template.tool_format.name == "harmony":
        core = '{"city": "'
    squeezed = "".join(prompt.split())
    assert "".join(core.split()) + "Oslo" in squeezed, f"{written!r} is not in {prompt[-600:]!r}"
