"""Agent frameworks, one turn each with a real tool: forced call, real result, answer in text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool as langchain_tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from smolagents import ActionStep, OpenAIModel, Tool, ToolCallingAgent

from tests.conftest import Server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.usefixtures("swept"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SETTINGS: dict[str, Any] = {"max_tokens": 48, "temperature": 0.0}
# A text of any length would be cut off by `max_tokens`, and frameworks drop a call that is not whole.
Note = Literal["keeper", "harbour"]


@pytest.fixture
def note(tmp_path: Path) -> Callable[[str], str]:
    """What a real file says."""
    for name in ("keeper", "harbour"):
        (tmp_path / name).write_text(f"The {name} is called Marigold.")
    return lambda name: (tmp_path / name).read_text()


class _FirstStep(AbstractCapability[None]):
    """Forces the tool at first, and none afterwards."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        return lambda context: ModelSettings(tool_choice=["read_note"] if context.run_step == 1 else "none")


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_pydantic_ai(roomy: Server, note: Callable[[str], str], dialect: str) -> None:
    provider = OpenAIProvider(base_url=roomy.base_url, api_key="none")
    models: dict[str, Callable[[], Model]] = {
        "chat": lambda: OpenAIChatModel("local", provider=provider),
        "responses": lambda: OpenAIResponsesModel("local", provider=provider),
        "messages": lambda: AnthropicModel(
            "local", provider=AnthropicProvider(base_url=roomy.url, api_key="none")
        ),
    }
    settings = ModelSettings(max_tokens=48, temperature=0.0, parallel_tool_calls=False)
    agent = Agent(models[dialect](), model_settings=settings, capabilities=[_FirstStep()])

    @agent.tool_plain
    def read_note(name: Note) -> str:
        """Reads a note."""
        return note(name)

    result = agent.run_sync("Who keeps the lighthouse?")
    parts = [part for message in result.all_messages() for part in message.parts]
    (call,) = [part for part in parts if isinstance(part, ToolCallPart)]
    (returned,) = [part for part in parts if isinstance(part, ToolReturnPart)]
    assert call.tool_name == "read_note"
    assert "Marigold" in str(returned.content)
    assert result.output
    assert result.usage.cache_read_tokens > 0


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_langchain(roomy: Server, note: Callable[[str], str], dialect: str) -> None:
    @langchain_tool
    def read_note(name: Note) -> str:
        """Reads a note."""
        return note(name)

    openai = {"base_url": roomy.base_url, "api_key": "none"} | SETTINGS
    models: dict[str, Callable[[], BaseChatModel]] = {
        "chat": lambda: ChatOpenAI(model="local", **openai),
        "responses": lambda: ChatOpenAI(model="local", use_responses_api=True, **openai),
        "messages": lambda: ChatAnthropic(model="local", base_url=roomy.url, api_key="none", **SETTINGS),
    }
    # Its client for Anthropic would take the word for the name of a tool.
    no_tool: Any = {"type": "none"} if dialect == "messages" else "none"
    model = models[dialect]()
    said: list[Any] = [HumanMessage("Who keeps the lighthouse?")]
    answer = model.bind_tools([read_note], tool_choice="any", parallel_tool_calls=False).invoke(said)
    (call,) = answer.tool_calls
    assert call["name"] == "read_note"
    result = read_note.invoke(call["args"])
    assert "Marigold" in result
    said += [answer, ToolMessage(result, tool_call_id=call["id"])]
    last = model.bind_tools([read_note], tool_choice=no_tool).invoke(said)
    assert last.text
    assert last.usage_metadata is not None
    assert last.usage_metadata["input_token_details"]["cache_read"] > 0


class ReadNote(Tool):  # type: ignore[misc]
    name = "read_note"
    description = "Reads a note."
    inputs = {  # noqa: RUF012
        "name": {"type": "string", "description": "Which one.", "enum": ["keeper", "harbour"]}
    }
    output_type = "string"

    def __init__(self, read: Callable[[str], str]) -> None:
        super().__init__()
        self.read = read

    def forward(self, name: str) -> str:
        return self.read(name)


class FinalAnswer(Tool):  # type: ignore[misc]
    name = "final_answer"
    description = "Gives the answer."
    inputs = {  # noqa: RUF012
        "answer": {"type": "string", "description": "The name.", "enum": ["Marigold", "unknown"]}
    }
    output_type = "string"

    def forward(self, answer: str) -> str:
        return answer


def test_smolagents(roomy: Server, note: Callable[[str], str]) -> None:
    def chosen(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name}}

    def answer_next(_step: ActionStep, agent: ToolCallingAgent) -> None:
        agent.model.kwargs["tool_choice"] = chosen("final_answer")

    settings = SETTINGS | {"parallel_tool_calls": False, "tool_choice": chosen("read_note")}
    model = OpenAIModel("local", api_base=roomy.base_url, api_key="none", **settings)
    agent = ToolCallingAgent(
        tools=[ReadNote(note), FinalAnswer()],
        model=model,
        max_steps=2,
        step_callbacks=[answer_next],
        verbosity_level=0,
    )
    assert agent.run("Who keeps the lighthouse? Read the note.") in ("Marigold", "unknown")
    steps = [step for step in agent.memory.steps if isinstance(step, ActionStep)]
    assert [step.error for step in steps] == [None, None]
    assert [[call.name for call in step.tool_calls or []] for step in steps] == [
        ["read_note"],
        ["final_answer"],
    ]
    assert "Marigold" in (steps[0].observations or "")
