"""Agent frameworks, one turn each with a real tool: forced call, real result, answer in text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from astraea_local.frame import StateFrame
from tests.api.test_clients_doc import roomy
from tests.conftest import Server

pytestmark = pytest.mark.e2e
__all__ = ["roomy"]

SETTINGS = {"max_tokens": 48, "temperature": 0.0}


@pytest.fixture
def note(tmp_path: Path) -> Callable[[str], str]:
    """A tool that reads a real file, whatever it is called."""
    file = tmp_path / "note.txt"
    file.write_text("The lighthouse keeper is called Marigold.")
    return lambda name: f"{name}: {file.read_text()}"


def waits(server: Server) -> set[str]:
    """Tools that some job was seen to come back from."""
    frame = StateFrame.model_validate(server.state())
    return {job.tool for job in frame.jobs if job.tool}


class _FirstStep(AbstractCapability[None]):
    """Forces the tool at first, and nothing afterwards."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        return lambda context: (
            ModelSettings(tool_choice=["read_note"]) if context.run_step == 1 else ModelSettings()
        )


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
    settings = ModelSettings(max_tokens=48, temperature=0.0)
    agent = Agent(models[dialect](), model_settings=settings, capabilities=[_FirstStep()], retries=5)

    @agent.tool_plain
    def read_note(name: str) -> str:
        """Reads a note."""
        return note(name)

    result = agent.run_sync("Who keeps the lighthouse?")
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    returns = [part for part in parts if isinstance(part, ToolReturnPart)]
    assert {call.tool_name for call in calls} == {"read_note"}
    assert "Marigold" in str(returns[0].content)
    assert result.output
    assert result.usage.cache_read_tokens > 0


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_langchain(roomy: Server, note: Callable[[str], str], dialect: str) -> None:
    @langchain_tool
    def read_note(name: str) -> str:
        """Reads a note."""
        return note(name)

    openai: dict[str, Any] = {"base_url": roomy.base_url, "api_key": "none"} | SETTINGS
    models: dict[str, Callable[[], BaseChatModel]] = {
        "chat": lambda: ChatOpenAI(model="local", **openai),
        "responses": lambda: ChatOpenAI(model="local", use_responses_api=True, **openai),
        "messages": lambda: ChatAnthropic(model="local", base_url=roomy.url, api_key="none", **SETTINGS),
    }
    model = models[dialect]()
    said: list[Any] = [HumanMessage("Who keeps the lighthouse?")]
    answer = model.bind_tools([read_note], tool_choice="any").invoke(said)
    (call,) = answer.tool_calls[:1]
    assert call["name"] == "read_note"
    said += [answer, ToolMessage(read_note.invoke(call["args"]), tool_call_id=call["id"])]
    said += [ToolMessage("again", tool_call_id=other["id"]) for other in answer.tool_calls[1:]]
    last = model.bind_tools([read_note], tool_choice="none").invoke(said)
    assert last.text
    assert last.usage_metadata is not None
    assert last.usage_metadata["input_token_details"]["cache_read"] > 0


class ReadNote(Tool):  # type: ignore[misc]
    name = "read_note"
    description = "Reads a note."
    inputs = {"name": {"type": "string", "description": "Which one."}}  # noqa: RUF012
    output_type = "string"

    def __init__(self, read: Callable[[str], str]) -> None:
        super().__init__()
        self.read = read

    def forward(self, name: str) -> str:
        return self.read(name)


def test_smolagents(roomy: Server, note: Callable[[str], str]) -> None:
    model = OpenAIModel("local", api_base=roomy.base_url, api_key="none", **SETTINGS)
    agent = ToolCallingAgent(tools=[ReadNote(note)], model=model, max_steps=2, verbosity_level=0)
    agent.run("Who keeps the lighthouse? Read the note.")
    steps = [step for step in agent.memory.steps if isinstance(step, ActionStep)]
    calls = [call for step in steps for call in step.tool_calls or []]
    assert calls
    assert {call.name for call in calls} <= {"read_note", "final_answer"}
