"""Scheduling decisions, executed by a real engine."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from astraea_local.frame import StateFrame
from astraea_local.scheduler.policies import POLICIES
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

# Recomputing a short context, and flash attention, would round differently from one run to the next.
_EAGER = """
[model]
source = "demo"
gpu_layers = 0
flash_attention = "off"
[context]
size = 1024
slots = 1
[kv]
layout = "per_slot"
[scheduler]
preempt_factor = 1.01
min_quantum_tokens = 8
[retention]
min_tokens = 1
[server]
keepalive_s = 0.2
"""
_LONG = 200
_PROMPT = (
    "We count slowly from one to one hundred, and leave out no number: one two three four five six seven"
)


@pytest.fixture(scope="module")
def eager(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One slot, and a policy that lets short requests take it at once."""
    profile = tmp_path_factory.mktemp("profile") / "eager.toml"
    profile.write_text(_EAGER)
    return start_server("--profile", str(profile))


def _lines(server: Server, prompt: str, tokens: int) -> Iterator[str]:
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", f"{server.base_url}/completions", json=body, timeout=120) as answer:
        answer.raise_for_status()
        yield from answer.iter_lines()


def _whole(server: Server, prompt: str, tokens: int) -> list[str]:
    return list(_lines(server, prompt, tokens))


def _chunks(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def _text(lines: list[str]) -> str:
    return "".join(
        choice["text"]
        for chunk in _chunks(lines)
        for choice in chunk["choices"]  # type: ignore[attr-defined]
    )


def test_a_preempted_stream_pauses_says_so_and_loses_nothing(eager: Server) -> None:
    # This leaves the KV of all but the prompt's last token, from which both others start. That token's is
    # computed by each alone, not in a batch with others, which would round differently.
    _whole(eager, _PROMPT, 1)
    alone = _whole(eager, f"{_PROMPT} eight", _LONG)
    started = threading.Event()
    lines: list[str] = []

    def read_long() -> None:
        for line in _lines(eager, f"{_PROMPT} eight", _LONG):
            lines.append(line)
            if len(lines) > 20:
                started.set()

    reader = threading.Thread(target=read_long)
    reader.start()
    assert started.wait(60)
    short = _whole(eager, "Hello there, my friend.", 4)
    reader.join(120)

    assert len(_chunks(short)) > 1
    (paused,) = [line for line in lines if line.startswith(": paused:")]
    assert "gave way to job-" in paused
    assert _text(lines) == _text(alone)
    assert _chunks(lines)[-1]["usage"]["completion_tokens"] == _LONG  # type: ignore[index]
    assert StateFrame.model_validate(eager.state()).totals.preemptions == 1


def test_the_policy_changes_under_load_and_every_request_is_answered(eager: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(_whole, eager, f"Request {i}", 40) for i in range(8)]
        for name in POLICIES:

            def in_force(name: str = name) -> bool:
                return StateFrame.model_validate(eager.state()).server.policy == name

            answer = httpx.post(f"{eager.url}/astraea/v1/policy", json={"policy": name}, timeout=10)
            assert answer.json() == {"policy": name}
            eager.wait_until(in_force, 20)
        ended = [_chunks(answer.result(120))[-1] for answer in answers]
    assert [chunk["usage"]["completion_tokens"] for chunk in ended] == [40] * 8  # type: ignore[index]


def test_a_waiting_request_explains_its_place(eager: Server) -> None:
    httpx.post(f"{eager.url}/astraea/v1/policy", json={"policy": "astraea"}, timeout=10)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(_whole, eager, f"Question {i}", 60) for i in range(3)]

        def reasons() -> list[str]:
            return [row.reason for row in StateFrame.model_validate(eager.state()).queue]

        eager.wait_until(lambda: bool(reasons()), 20)
        assert all("needs" in reason for reason in reasons())
        for answer in answers:
            answer.result(120)


def test_history_outlives_the_server(start_server: StartServer, tmp_path: Path) -> None:
    profile = tmp_path / "eager.toml"
    profile.write_text(_EAGER.replace("[model]", 'name = "history"\n[model]'))
    first = start_server("--profile", str(profile))
    _whole(first, "Remember me.", 5)
    assert first.stop() == 0
    second = start_server("--profile", str(profile))
    texts = [event.text for event in StateFrame.model_validate(second.state()).events]
    (line,) = [text for text in texts if "earlier segments to predict from" in text]
    assert int(line.split("; ")[1].split()[0]) >= 1
    second.stop()
