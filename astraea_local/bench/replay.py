"""Drives a workload against an OpenAI-compatible server and measures job completion times.

Works against any server that streams chat completions; `ignore_eos` keeps output lengths as drawn where
the server knows it, which llama-server does as well.
"""

import argparse
import asyncio
import itertools
import json
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from astraea_local.bench.coding import Agent, workload

Headers = Literal["none", "session"]

_TIMEOUT = httpx.Timeout(900.0, connect=10.0)
_EXAMPLE = """example:
  python -m astraea_local.bench.replay --url http://127.0.0.1:8080/v1 --agents 12 --seed 1 --json run.json"""


class ReplayError(Exception):
    """A request that was refused, broke off, or was answered with something else than a completion."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One LLM call as the client saw it; times in seconds."""

    ttft_s: float
    """From sending the request to the first text."""
    seconds: float
    """From sending the request to the end of the response."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    wanted_tokens: int
    """Output length of the workload; a shorter one means that `ignore_eos` was not heeded."""


@dataclass(frozen=True, slots=True)
class AgentResult:
    """One job: what it took, call by call."""

    id: str
    arrival_s: float
    jct_s: float
    """First request to the end of the last response, tool waits included; until the failure if it failed."""
    tool_s: float
    segments: tuple[Segment, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A whole replay."""

    agents: tuple[AgentResult, ...]
    makespan_s: float
    """First arrival to the end of the last agent."""

    def summary(self) -> dict[str, float | int | None]:
        """Figures over the agents that finished; times in seconds, None where there is nothing to average."""
        done = [agent for agent in self.agents if agent.error is None]
        times = [agent.jct_s for agent in done]
        segments = [segment for agent in done for segment in agent.segments]
        after_tools = [segment.ttft_s for agent in done for segment in agent.segments[1:]]
        prompt_tokens = sum(segment.prompt_tokens for segment in segments)
        cached_tokens = sum(segment.cached_tokens for segment in segments)
        return {
            "agents": len(self.agents),
            "errors": len(self.agents) - len(done),
            "mean_jct_s": _mean(times),
            "p50_jct_s": _percentile(times, 50),
            "p95_jct_s": _percentile(times, 95),
            "mean_ttft_after_tool_s": _mean(after_tools),
            "cached_share": cached_tokens / prompt_tokens if prompt_tokens else None,
            "makespan_s": self.makespan_s,
            "prompt_tokens": prompt_tokens,
            "output_tokens": sum(segment.output_tokens for segment in segments),
            "short_replies": sum(segment.output_tokens < segment.wanted_tokens for segment in segments),
        }

    def to_json(self) -> dict[str, Any]:
        """The summary and every agent with its calls, ready for `json.dumps`."""
        return {"summary": self.summary(), "agents": [asdict(agent) for agent in self.agents]}


@dataclass(slots=True)
class _Drive:
    client: httpx.AsyncClient
    model: str
    headers: Headers
    report: Callable[[], None]
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))


async def run(
    base_url: str,
    agents: Sequence[Agent],
    *,
    model: str = "default",
    headers: Headers = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Plays all agents at once, each in its own time, and returns what was measured.

    `base_url` ends in `/v1`. With `headers="session"` every request names its agent in `X-Session-Id`;
    with "none" the server has to find out itself. `on_progress` gets (calls answered, calls in all). A
    failed call ends its agent and is counted; nothing is raised for it.
    """
    total = sum(len(agent.turns) for agent in agents)
    answered = itertools.count(1)

    def report() -> None:
        if on_progress is not None:
            on_progress(next(answered), total)

    async with open_client(base_url) as client:
        drive = _Drive(client, model, headers, report)
        start = time.perf_counter()
        results = await asyncio.gather(*(_play(drive, agent) for agent in agents))
        makespan = time.perf_counter() - start - min((agent.arrival_s for agent in agents), default=0.0)
    return Result(tuple(results), makespan)


def open_client(base_url: str) -> httpx.AsyncClient:
    """A client that waits as long as a queued request may be silent, with a connection for each request."""
    # A kept connection may be closed by the server just when it is used again, after a tool wait.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    # trust_env: a proxy from the environment must not stand between the clock and a local server.
    return httpx.AsyncClient(base_url=base_url, timeout=_TIMEOUT, limits=limits, trust_env=False)


async def complete(
    client: httpx.AsyncClient,
    messages: Sequence[dict[str, str]],
    max_tokens: int,
    *,
    model: str = "default",
    headers: dict[str, str] | None = None,
) -> tuple[str, Segment]:
    """One streamed completion of exactly `max_tokens`: its text and figures. Raises `ReplayError`."""
    body = {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    first: float | None = None
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    finished = False
    try:
        async with client.stream("POST", "/chat/completions", json=body, headers=headers) as response:
            async for chunk in _chunks(response):
                usage = chunk.get("usage") or usage
                timings = chunk.get("timings") or timings
                for choice in chunk.get("choices") or ():
                    finished = finished or choice.get("finish_reason") is not None
                    if text := choice.get("delta", {}).get("content"):
                        first = first or time.perf_counter()
                        pieces.append(text)
    except httpx.HTTPError as error:
        raise ReplayError(f"{type(error).__name__}: {error}") from error
    if not finished:
        raise ReplayError("the stream ended before the reply did")
    end = time.perf_counter()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n", 0))
    segment = Segment(
        ttft_s=(first or end) - start,
        seconds=end - start,
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=cached,
        output_tokens=usage.get("completion_tokens", len(pieces)),
        wanted_tokens=max_tokens,
    )
    return "".join(pieces), segment


async def _play(drive: _Drive, agent: Agent) -> AgentResult:
    await asyncio.sleep(agent.arrival_s)
    headers = {"X-Session-Id": f"{drive.run_id}-{agent.id}"} if drive.headers == "session" else None
    messages = [{"role": "system", "content": agent.system}, {"role": "user", "content": agent.task}]
    segments: list[Segment] = []
    tool_s = 0.0
    error = None
    start = end = time.perf_counter()
    for number, turn in enumerate(agent.turns, start=1):
        try:
            text, segment = await complete(
                drive.client, messages, turn.output_tokens, model=drive.model, headers=headers
            )
        except ReplayError as failure:
            error = str(failure)
            end = time.perf_counter()
            break
        end = time.perf_counter()
        segments.append(segment)
        drive.report()
        if number < len(agent.turns):
            # The result goes back as a user message: small models' templates know no tool role.
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": turn.tool_result_text})
            await asyncio.sleep(turn.tool_seconds)
            tool_s += turn.tool_seconds
    return AgentResult(agent.id, agent.arrival_s, end - start, tool_s, tuple(segments), error)


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of an event stream. Raises `ReplayError` for error statuses and error objects."""
    if response.status_code != httpx.codes.OK:
        await response.aread()
        raise ReplayError(f"HTTP {response.status_code}: {response.text[:200]}")
    async for line in response.aiter_lines():
        if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
            continue
        try:
            chunk = json.loads(data)
        except json.JSONDecodeError as error:
            raise ReplayError(f"not JSON in the stream: {data[:80]}") from error
        if not isinstance(chunk, dict) or "error" in chunk:
            raise ReplayError(f"error in the stream: {data[:200]}")
        yield chunk


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 when an agent failed, or 2 when there is no server at the URL."""
    parser = argparse.ArgumentParser(
        prog="python -m astraea_local.bench.replay",
        description="Replays seeded coding agents against a server, prints their job completion times.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="default: %(default)s")
    parser.add_argument("--agents", type=int, default=12, help="number of agents (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the workload (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.25, help="arrivals per second (default: %(default)s)")
    parser.add_argument("--context-limit", type=int, default=2000, help="tokens (default: %(default)s)")
    parser.add_argument("--model", default="default", help="model name in requests (default: %(default)s)")
    parser.add_argument("--headers", choices=("none", "session"), default="none", help="send X-Session-Id")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every call's figures there")
    args = parser.parse_args(argv)
    try:
        agents = workload(args.seed, agents=args.agents, rate=args.rate, context_limit=args.context_limit)
    except ValueError as error:
        parser.error(str(error))
    try:
        httpx.get(f"{args.url.rstrip('/')}/models", timeout=_TIMEOUT, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.stderr.write(f"replay: no server at {args.url} ({error}); start one with `astraea-local serve`\n")
        return 2
    columns = (TextColumn("calls"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("calls", total=sum(len(agent.turns) for agent in agents))

        def show(done: int, _total: int) -> None:
            progress.update(task, completed=done)

        result = asyncio.run(run(args.url, agents, model=args.model, headers=args.headers, on_progress=show))
    table = Table("figure", "value", title="Replay")
    for name, value in result.summary().items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(result.to_json(), indent=1), encoding="utf-8")
    return 1 if result.summary()["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
