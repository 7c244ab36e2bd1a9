"""KV that survives crashes, pressure, pauses and resizes, as agents of a real server see it."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

PROFILE = """
[model]
source = "demo"
gpu_layers = 0
[context]
size = 4096
slots = 4
[kv]
layout = "{layout}"
[scheduler]
max_step_ms = 800.0
[retention]
disk_path = "{folder}"
write_behind_s = 0.2
[memory]
debug_pressure = true
poll_ms = 100
calm_s = 2.0
"""
GIB = 1 << 30


@pytest.fixture
def serve(start_server: StartServer, tmp_path: Path) -> Callable[..., Server]:
    """Starts servers that share a folder of parked states."""

    def start(layout: str = "per_slot") -> Server:
        profile = tmp_path / "profile.toml"
        profile.write_text(PROFILE.format(layout=layout, folder=tmp_path / "kv"))
        return start_server("--profile", str(profile))

    return start


class Agents:
    """Agents that talk in turns, each in a thread of its own."""

    def __init__(self, server: Server, count: int, calls: int = 3) -> None:
        self.errors: list[str] = []
        self.usage: dict[int, list[tuple[int, int]]] = {i: [] for i in range(count)}
        self.calls = calls
        self._client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        self._threads = [threading.Thread(target=self._play, args=(i,)) for i in range(count)]

    def __enter__(self) -> "Agents":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(240)
        assert not any(thread.is_alive() for thread in self._threads)

    def _play(self, number: int) -> None:
        messages: list[Any] = [{"role": "user", "content": opening(number)}]
        for _ in range(self.calls):
            try:
                answer = self._client.chat.completions.create(
                    model="default",
                    messages=messages,
                    max_tokens=16,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                    extra_headers={"X-Astraea-Job": f"agent-{number}"},
                )
            except Exception as error:
                self.errors.append(f"agent {number}: {error!r}")
                return
            assert answer.usage is not None
            details = answer.usage.prompt_tokens_details
            assert details is not None
            self.usage[number].append((answer.usage.prompt_tokens, details.cached_tokens or 0))
            text = answer.choices[0].message.content
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Go on."}]
            time.sleep(0.1)


def opening(number: int) -> str:
    return f"You are agent {number}. " + "Describe the harbour, the ships and the wind of the day. " * 9


def kv(server: Server) -> dict[str, Any]:
    found = server.state()["kv"]
    assert isinstance(found, dict)
    return found


def post(server: Server, what: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/astraea/v1/{what}", json=body, timeout=120)


@pytest.mark.parametrize("layout", ["per_slot", "unified"])
def test_agents_go_on_through_pressure_resize_and_pause(serve: Callable[..., Server], layout: str) -> None:
    """Others take the VRAM and release it, a user resizes and pauses: twelve agents finish, nothing fails."""
    server = serve(layout)
    with Agents(server, 12) as agents:
        server.wait_until(lambda: kv(server)["cells_used"] > 500, 60)
        pressed = {"vram_total": GIB, "vram_free": GIB // 50, "vram_others": GIB // 2}
        assert post(server, "debug/pressure", **pressed).status_code == 200
        server.wait_until(lambda: kv(server)["rebuilds"] >= 1 and kv(server)["cells_total"] < 4096, 60)
        calm = {"vram_total": GIB, "vram_free": GIB // 2, "vram_others": GIB // 8}
        assert post(server, "debug/pressure", **calm).status_code == 200
        server.wait_until(lambda: kv(server)["cells_total"] == 4096, 60)
        resized = post(server, "context", slots=2)
        assert resized.status_code == 200, resized.text
        assert post(server, "pause").status_code == 200
        server.wait_until(lambda: server.state()["status"] == "paused", 30)
        assert post(server, "resume").status_code == 200
        server.wait_until(lambda: server.state()["status"] == "ready", 30)
    assert agents.errors == []
    for calls in agents.usage.values():
        assert len(calls) == agents.calls
        for (before, _), (_, cached) in itertools.pairwise(calls):
            # The whole earlier prompt came from KV; where its end was trimmed, a few tokens less.
            assert cached >= before - 4
    assert kv(server)["restore_failures"] == 0
    assert server.stop() == 0


@pytest.mark.parametrize("kill", [False, True], ids=["clean stop", "kill -9"])
def test_the_next_server_finds_the_parked_states(serve: Callable[..., Server], kill: bool) -> None:
    first = serve()
    with Agents(first, 3, calls=1) as agents:
        pass
    assert agents.errors == []
    if kill:
        first.wait_until(lambda: kv(first)["disk_states"] >= 3 and kv(first)["disk_writes"] >= 3, 30)
        pid = first.engine_pid()
        first.process.kill()
        os.kill(pid, signal.SIGKILL)
        first.process.wait()
    else:
        assert first.stop() == 0
    second = serve()
    assert kv(second)["disk_states"] >= 3
    with Agents(second, 3, calls=1) as again:
        pass
    assert again.errors == []
    for calls in again.usage.values():
        prompt, cached = calls[0]
        assert cached >= prompt - 4
    assert kv(second)["disk_reads"] >= 3
    assert second.stop() == 0


def test_a_crash_of_the_engine_loses_no_parked_state(serve: Callable[..., Server]) -> None:
    server = serve()
    with Agents(server, 3, calls=1):
        pass
    server.wait_until(lambda: kv(server)["disk_states"] >= 3, 30)
    os.kill(server.engine_pid(), signal.SIGKILL)
    server.wait_until(lambda: server.healthy() and server.state()["restarts"] == 1, 60)
    with Agents(server, 3, calls=1) as again:
        pass
    assert again.errors == []
    assert all(cached >= prompt - 4 for ((prompt, cached),) in again.usage.values())
    assert server.stop() == 0


def test_what_is_not_possible_is_said(serve: Callable[..., Server]) -> None:
    server = serve()
    assert post(server, "resume").json() == {"done": "the server is not paused"}
    assert post(server, "pause").status_code == 200
    refused = post(server, "context", slots=2)
    assert refused.status_code == 409
    assert "paused" in refused.json()["error"]["message"]
    assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    assert post(server, "resume").status_code == 200
    wrong = post(server, "context", size=1)
    assert wrong.status_code in (400, 422)
    assert "size" in wrong.text
