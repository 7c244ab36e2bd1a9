"""Two agents at once, each with the official client of its dialect, a real shell, and twenty turns."""

import json
import subprocess
from collections.abc import Callable
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
# Few, so that a small model's arguments are commands, and of several programs.
SCHEMA = {
    "type": "object",
    "properties": {
        "command": {"enum": ["ls", "cat keeper.txt", "wc -w keeper.txt", "sort keeper.txt", WRITE]}
    },
    "required": ["command"],
    "additionalProperties": False,
}
ABOUT = "Runs a command in the shell."
# Left to its likeliest choice a small model runs the same command twenty times.
VARIED = {"temperature": 1.5, "min_p": 0, "top_p": 1}


@dataclass
class Log:
    """What one agent did, turn by turn."""

    job: str = ""
    commands: list[str] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    @property
    def tools(self) -> list[str]:
        """The tools as the scheduler should know them."""
        return [f"bash:{command.split()[0]}" for command in self.commands]

    @property
    def reused(self) -> float:
        """The share of tokens sent again, which each turn's prompt and answer are, that came from KV."""
        again = sum(self.prompts[:-1]) + sum(self.outputs[:-1])
        return sum(self.cached[1:]) / again

    def add(self, job: str, command: str, prompt: int, cached: int, output: int) -> None:
        assert self.job in ("", job)
        self.job = job
        self.commands.append(command)
        self.prompts.append(prompt)
        self.cached.append(cached)
        self.outputs.append(output)


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout or "done"


def by_chat(server: Server, folder: Path, task: str) -> Log:
    """An agent that speaks chat completions."""
    log = Log()
    said: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    function = {"name": "bash", "description": ABOUT, "parameters": SCHEMA}
    settings: Any = {
        "model": "local",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 64,
    }
    with OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=120) as client:
        for turn in range(TURNS):
            raw = client.chat.completions.with_raw_response.create(
                messages=said, extra_body=VARIED | {"seed": turn}, **settings
            )
            answer = raw.parse()
            assert isinstance(answer, ChatCompletion)
            choice, usage = answer.choices[0], answer.usage
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls or []
            assert call.type == "function"
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            command = json.loads(call.function.arguments)["command"]
            cached = usage.prompt_tokens_details.cached_tokens or 0
            job = raw.headers["x-astraea-job"]
            log.add(job, command, usage.prompt_tokens, cached, usage.completion_tokens)
            result = {"role": "tool", "tool_call_id": call.id, "content": shell(command, folder)}
            said += [choice.message.model_dump(exclude_none=True), result]
    return log


def by_messages(server: Server, folder: Path, task: str) -> Log:
    """An agent that speaks Anthropic's Messages."""
    log = Log()
    said: list[Any] = [{"role": "user", "content": task}]
    settings: Any = {
        "model": "local",
        "system": SYSTEM,
        "tools": [{"name": "bash", "description": ABOUT, "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 64,
    }
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120) as client:
        for turn in range(TURNS):
            raw = client.messages.with_raw_response.create(
                messages=said, extra_body=VARIED | {"seed": turn}, **settings
            )
            answer = raw.parse()
            assert isinstance(answer, Message)
            assert answer.stop_reason == "tool_use"
            (call,) = answer.content
            assert call.type == "tool_use"
            usage, command = answer.usage, str(call.input["command"])
            cached = usage.cache_read_input_tokens or 0
            job = raw.headers["x-astraea-job"]
            log.add(job, command, usage.input_tokens + cached, cached, usage.output_tokens)
            result = {"type": "tool_result", "tool_use_id": call.id, "content": shell(command, folder)}
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
        assert len(log.commands) == TURNS
        assert len(set(log.tools)) > 1
        written = tmp_path / name / "log.txt"
        lines = written.read_text().splitlines() if written.exists() else []
        assert len(lines) == log.commands.count(WRITE)
        assert log.reused >= 0.95, (name, log)

    def rows() -> dict[str, Any]:
        return {row.job: row for row in StateFrame.model_validate(server.state()).jobs}

    wanted = {log.job: log.tools[-1] for log in logs.values()}
    assert len(wanted) == 2
    server.wait_until(lambda: {job: row.tool for job, row in rows().items()} == wanted, 10)
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
