"""Two agents at once, each with the official client of its dialect, a real shell, and twenty turns."""

import json
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import Message
from openai import OpenAI
from openai.types.chat import ChatCompletion

from astraea_local.frame import StateFrame
from astraea_local.job_detail import JobDetail
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

TURNS = 20
SYSTEM = "You look after the files of a lighthouse. Work in small steps, and look before you write."
WRITE = "echo seen >> log.txt"
# Few, so that a small model's arguments are commands.
SCHEMA = {
    "type": "object",
    "properties": {
        "command": {"enum": ["ls", "cat keeper.txt", "wc -w keeper.txt", "sort keeper.txt", WRITE]}
    },
    "required": ["command"],
    "additionalProperties": False,
}
FILE = {
    "type": "object",
    "properties": {"path": {"enum": ["keeper.txt"]}},
    "required": ["path"],
    "additionalProperties": False,
}
TOOLS = {"bash": ("Runs a command in the shell.", SCHEMA), "read_file": ("Reads a file.", FILE)}
# A small model may well run the same command twenty times.
VARIED = {"temperature": 1.5, "min_p": 0, "top_p": 1}


def wanted(turn: int) -> str:
    """The tool that the client asks for by name: every third time the second."""
    return "read_file" if turn % 3 == 2 else "bash"


@dataclass
class Log:
    """What one agent did, turn by turn."""

    job: str = ""
    tools: list[str] = field(default_factory=list)
    """As the scheduler should know them."""
    commands: list[str] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    @property
    def reused(self) -> float:
        """The share of tokens sent again, which each turn's prompt and answer are, that came from KV."""
        again = sum(self.prompts[:-1]) + sum(self.outputs[:-1])
        return sum(self.cached[1:]) / again

    def add(self, job: str, prompt: int, cached: int, output: int) -> None:
        assert self.job in ("", job)
        self.job = job
        self.prompts.append(prompt)
        self.cached.append(cached)
        self.outputs.append(output)

    def use(self, tool: str, arguments: Mapping[str, object], folder: Path) -> str:
        """Runs a tool, and returns what it says."""
        if tool == "read_file":
            self.tools.append(tool)
            return (folder / str(arguments["path"])).read_text()
        command = str(arguments["command"])
        self.tools.append(f"{tool}:{command.split()[0]}")
        self.commands.append(command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout or "done"


def by_chat(server: Server, folder: Path, task: str) -> Log:
    """An agent that speaks chat completions."""
    log = Log()
    said: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    functions = [
        {"name": name, "description": about, "parameters": schema} for name, (about, schema) in TOOLS.items()
    ]
    settings: Any = {
        "model": "local",
        "tools": [{"type": "function", "function": function} for function in functions],
        "parallel_tool_calls": False,
        "max_tokens": 64,
    }
    with OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=120) as client:
        for turn in range(TURNS):
            choice: Any = {"type": "function", "function": {"name": wanted(turn)}}
            raw = client.chat.completions.with_raw_response.create(
                messages=said, tool_choice=choice, extra_body=VARIED | {"seed": turn}, **settings
            )
            answer = raw.parse()
            assert isinstance(answer, ChatCompletion)
            message, usage = answer.choices[0].message, answer.usage
            (call,) = message.tool_calls or []
            assert call.type == "function"
            assert call.function.name == wanted(turn)
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached = usage.prompt_tokens_details.cached_tokens or 0
            log.add(raw.headers["x-astraea-job"], usage.prompt_tokens, cached, usage.completion_tokens)
            content = log.use(call.function.name, json.loads(call.function.arguments), folder)
            result = {"role": "tool", "tool_call_id": call.id, "content": content}
            said += [message.model_dump(exclude_none=True), result]
    return log


def by_messages(server: Server, folder: Path, task: str) -> Log:
    """An agent that speaks Anthropic's Messages."""
    log = Log()
    said: list[Any] = [{"role": "user", "content": task}]
    settings: Any = {
        "model": "local",
        "system": SYSTEM,
        "tools": [
            {"name": name, "description": about, "input_schema": schema}
            for name, (about, schema) in TOOLS.items()
        ],
        "max_tokens": 64,
    }
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120) as client:
        for turn in range(TURNS):
            choice: Any = {"type": "tool", "name": wanted(turn), "disable_parallel_tool_use": True}
            raw = client.messages.with_raw_response.create(
                messages=said, tool_choice=choice, extra_body=VARIED | {"seed": turn}, **settings
            )
            answer = raw.parse()
            assert isinstance(answer, Message)
            assert answer.stop_reason == "tool_use"
            (call,) = answer.content
            assert call.type == "tool_use"
            assert call.name == wanted(turn)
            usage, cached = answer.usage, answer.usage.cache_read_input_tokens or 0
            log.add(raw.headers["x-astraea-job"], usage.input_tokens + cached, cached, usage.output_tokens)
            content = log.use(call.name, call.input, folder)
            result = {"type": "tool_result", "tool_use_id": call.id, "content": content}
            said += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    return log


@pytest.fixture
def server(start_server: StartServer, tmp_path: Path) -> Server:
    """8,192 tokens for each of two jobs."""
    profile = tmp_path / "two.toml"
    profile.write_text('[context]\nsize = 16384\nslots = 2\n[kv]\nlayout = "per_slot"\n')
    return start_server("--profile", str(profile))


def test_the_scheduler_knows_both_and_nothing_is_computed_twice(server: Server, tmp_path: Path) -> None:
    agents: dict[str, Callable[[Server, Path, str], Log]] = {"chat": by_chat, "messages": by_messages}
    for name in agents:
        (tmp_path / name).mkdir()
        (tmp_path / name / "keeper.txt").write_text("Marigold keeps the light.\nThe boat comes on Friday.\n")
    with ThreadPoolExecutor(len(agents)) as pool:
        begun = {
            name: pool.submit(agent, server, tmp_path / name, f"Look at the files, {name}.")
            for name, agent in agents.items()
        }
        logs = {name: log.result() for name, log in begun.items()}

    for name, log in logs.items():
        assert len(log.tools) == TURNS
        written = tmp_path / name / "log.txt"
        lines = written.read_text().splitlines() if written.exists() else []
        assert len(lines) == log.commands.count(WRITE)
        assert log.reused >= 0.95, (name, log)

    def rows() -> dict[str, Any]:
        return {row.job: row for row in StateFrame.model_validate(server.state()).jobs}

    last = {log.job: log.tools[-1] for log in logs.values()}
    assert len(last) == 2
    server.wait_until(lambda: {job: row.tool for job, row in rows().items()} == last, 10)
    for log in logs.values():
        row = rows()[log.job]
        assert (row.segments, row.state) == (TURNS, "waiting")
        assert row.tool_s > 0
        found = httpx.get(f"{server.url}/astraea/v1/jobs/{log.job}", timeout=10).content
        segments = JobDetail.model_validate_json(found).segments
        assert len(segments) == TURNS
        for tool, segment in zip(log.tools, segments[1:], strict=False):
            assert segment.wait is not None
            assert segment.wait.tool == tool
            assert segment.wait.seconds > 0
    assert server.stop() == 0
