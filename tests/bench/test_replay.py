"""Replay against a fake server whose answers, delays and failures are known."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from astraea_local.bench.coding import Agent, Turn
from astraea_local.bench.replay import main, run

_THINK_S = 0.05


def _agent(number: int, *, task: str = "task", tool_s: float = 0.3, arrival_s: float = 0.0) -> Agent:
    turns = (Turn("result one", 3, tool_s), Turn("result two", 4, tool_s), Turn("", 5, 0.0))
    return Agent(f"agent-{number}", arrival_s, "system", f"{task} {number}", turns)


class Fake:
    """Answers with as many words as asked for; from the second call on, half of the prompt is cached."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.sessions: list[str | None] = []
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.completions)
        self.url = ""

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": []}

    async def completions(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.requests.append(body)
        self.sessions.append(request.headers.get("x-session-id"))
        if "refuse" in body["messages"][1]["content"]:
            return JSONResponse({"error": {"message": "queue full"}}, status_code=429)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        def event(**chunk: Any) -> str:
            return f"data: {json.dumps(chunk)}\n\n"

        task = body["messages"][1]["content"]
        yield ": waiting\n\n"
        yield event(choices=[{"delta": {"role": "assistant", "content": None}, "finish_reason": None}])
        await asyncio.sleep(_THINK_S)
        if "explode" in task and len(body["messages"]) > 2:
            yield event(error={"message": "engine died"})
            return
        if "truncate" in task:
            return
        count = 2 if "short" in task else body["max_tokens"]
        for _ in range(count):
            yield event(choices=[{"delta": {"content": "word "}, "finish_reason": None}])
        yield event(choices=[{"delta": {}, "finish_reason": "length"}])
        prompt, cached = 100, 0 if len(body["messages"]) == 2 else 50
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": count}
        if "timings" in task:
            yield event(choices=[], usage=usage, timings={"cache_n": cached})
        else:
            yield event(choices=[], usage={**usage, "prompt_tokens_details": {"cached_tokens": cached}})
        yield "data: [DONE]\n\n"


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    made = Fake()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that connections wait for the server to be up
        made.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        config = uvicorn.Config(made.app, log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield made
        server.should_exit = True
        await task


async def test_jct_includes_the_tool_waits(fake: Fake) -> None:
    result = await run(fake.url, [_agent(0, tool_s=0.3)])
    (agent,) = result.agents
    assert agent.error is None
    assert agent.tool_s == pytest.approx(0.6)
    thinking = 3 * _THINK_S
    assert 0.6 + thinking <= agent.jct_s < 2.0
    assert result.makespan_s >= agent.jct_s
    assert sum(segment.seconds for segment in agent.segments) + agent.tool_s <= agent.jct_s + 0.01
    assert all(_THINK_S <= segment.ttft_s <= segment.seconds for segment in agent.segments)
    assert [segment.output_tokens for segment in agent.segments] == [3, 4, 5]


async def test_requests_grow_by_the_reply_and_the_tool_result(fake: Fake) -> None:
    await run(fake.url, [_agent(0, tool_s=0)], model="some-model")
    last = fake.requests[-1]
    assert [message["role"] for message in last["messages"]] == [
        *("system", "user", "assistant", "user", "assistant", "user")
    ]
    assert last["messages"][2]["content"] == "word word word "
    assert last["messages"][5]["content"] == "result two"
    assert (last["model"], last["max_tokens"], last["temperature"]) == ("some-model", 5, 0)
    assert last["ignore_eos"] is True
    assert last["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("task", ["task", "timings"])
async def test_the_cached_share_is_over_all_prompts(fake: Fake, task: str) -> None:
    result = await run(fake.url, [_agent(0, task=task, tool_s=0), _agent(1, task=task, tool_s=0)])
    summary = result.summary()
    assert summary["cached_share"] == pytest.approx(100 / 300)
    assert summary["prompt_tokens"] == 600
    assert summary["output_tokens"] == 24
    assert summary["short_replies"] == 0


@pytest.mark.parametrize(
    ("task", "message", "answered"),
    [("refuse", "HTTP 429", 0), ("explode", "engine died", 1), ("truncate", "ended before", 0)],
)
async def test_a_failed_call_ends_its_agent_and_is_counted(
    fake: Fake, task: str, message: str, answered: int
) -> None:
    result = await run(fake.url, [_agent(0, tool_s=0), _agent(1, task=task, tool_s=0)])
    good, bad = result.agents
    assert good.error is None
    assert bad.error is not None
    assert message in bad.error
    assert len(bad.segments) == answered
    summary = result.summary()
    assert (summary["agents"], summary["errors"]) == (2, 1)
    assert summary["mean_jct_s"] == pytest.approx(good.jct_s)


async def test_without_a_server_every_agent_fails_and_nothing_is_averaged() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    result = await run(f"http://127.0.0.1:{port}/v1", [_agent(0), _agent(1)])
    summary = result.summary()
    assert summary["errors"] == 2
    assert summary["mean_jct_s"] is None
    assert summary["cached_share"] is None


async def test_replies_that_stop_early_are_counted(fake: Fake) -> None:
    result = await run(fake.url, [_agent(0, task="short", tool_s=0)])
    assert result.summary()["short_replies"] == 3


async def test_agents_overlap_and_arrive_in_their_own_time(fake: Fake) -> None:
    agents = [_agent(0), _agent(1), _agent(2, arrival_s=0.2)]
    result = await run(fake.url, agents)
    assert result.makespan_s < 0.8 * sum(agent.jct_s for agent in result.agents)
    assert result.makespan_s >= 0.2 + result.agents[2].jct_s - 0.01


async def test_session_headers_tell_agents_and_runs_apart(fake: Fake) -> None:
    await run(fake.url, [_agent(0, tool_s=0)])
    assert set(fake.sessions) == {None}
    fake.sessions.clear()
    for _ in range(2):
        await run(fake.url, [_agent(0, tool_s=0), _agent(1, tool_s=0)], headers="session")
    assert None not in fake.sessions
    assert len(set(fake.sessions)) == 4


async def test_progress_counts_calls(fake: Fake) -> None:
    seen: list[tuple[int, int]] = []
    agents = [_agent(0, tool_s=0), _agent(1, tool_s=0)]
    await run(fake.url, agents, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


async def test_the_command_line_writes_json(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.json"
    size = ["--agents", "1", "--seed", "15", "--context-limit", "400"]  # a seed with short tool waits
    arguments = ["--url", fake.url, *size, "--json", str(file)]
    # In a thread, because it runs its own event loop.
    assert await asyncio.to_thread(main, arguments) == 0
    written = json.loads(file.read_text())
    assert written["summary"]["errors"] == 0
    assert written["agents"][0]["segments"][0]["prompt_tokens"] == 100
    assert "mean_jct_s" in capsys.readouterr().out


def test_the_command_line_names_a_missing_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert main(["--url", f"http://127.0.0.1:{port}/v1"]) == 2
    assert "no server at" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--url http://127.0.0.1:8080/v1 --agents 12 --seed 1" in capsys.readouterr().out
