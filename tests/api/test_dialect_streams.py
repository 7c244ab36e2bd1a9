"""Streams of both dialects while a job waits, and when the client leaves."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from astraea_local.frame import StateFrame
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

LONG: dict[str, dict[str, Any]] = {
    "responses": {"input": "Tell a story.", "max_output_tokens": 1500, "stream": True, "ignore_eos": True},
    "messages": {
        "messages": [{"role": "user", "content": "Tell a story."}],
        "max_tokens": 1500,
        "stream": True,
        "ignore_eos": True,
    },
}
DIALECTS = sorted(LONG)


@pytest.fixture(scope="module")
def narrow(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One slot, first come first served, a sign of life every 50 ms."""
    profile = tmp_path_factory.mktemp("narrow") / "narrow.toml"
    profile.write_text(
        "[context]\nsize = 2048\nslots = 1\n"
        '[kv]\nlayout = "per_slot"\n[scheduler]\npolicy = "fcfs"\n[server]\nkeepalive_s = 0.05\n'
    )
    return start_server("--profile", str(profile))


def stream(server: Server, dialect: str, job: str, **more: Any) -> Any:
    body, headers = LONG[dialect] | more, {"X-Astraea-Job": job}
    return httpx.stream("POST", f"{server.base_url}/{dialect}", json=body, headers=headers, timeout=60)


def running(server: Server) -> set[str]:
    frame = StateFrame.model_validate(server.state())
    return {slot.job for slot in frame.slots if slot.segment is not None and slot.job is not None}


def until(lines: Iterator[str], wanted: str) -> list[str]:
    """Lines up to the first that begins so."""
    found = []
    for line in lines:
        found.append(line)
        if line.startswith(wanted):
            return found
    raise AssertionError(f"{wanted!r} never came; the last lines were {found[-5:]}")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_job_that_waits_gives_signs_of_life(narrow: Server, dialect: str) -> None:
    sign = {"responses": ": queued", "messages": "event: ping"}[dialect]
    short = {"responses": {"max_output_tokens": 3}, "messages": {"max_tokens": 3}}[dialect]
    with stream(narrow, dialect, f"long-{dialect}") as long:
        until(long.iter_lines(), "data: ")
        narrow.wait_until(lambda: running(narrow) == {f"long-{dialect}"}, 20)
        with stream(narrow, dialect, f"short-{dialect}", **short) as waiting:
            lines = waiting.iter_lines()
            for _ in range(3):
                until(lines, sign)
            long.close()
            rest = list(lines)
    names = [line[7:] for line in rest if line.startswith("event: ") and line != "event: ping"]
    assert names[-1] == {"responses": "response.incomplete", "messages": "message_stop"}[dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_leaves_frees_its_slot(narrow: Server, dialect: str) -> None:
    job = f"leaver-{dialect}"
    with stream(narrow, dialect, job) as answer:
        until(answer.iter_lines(), "data: ")
        narrow.wait_until(lambda: job in running(narrow), 20)
        left = time.monotonic()
    narrow.wait_until(lambda: job not in running(narrow), 5)
    assert time.monotonic() - left < 5
    whole = {key: value for key, value in LONG[dialect].items() if key != "stream"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{narrow.base_url}/{dialect}", json=whole, headers={"X-Astraea-Job": f"{job}-2"}, timeout=1
        )
    narrow.wait_until(lambda: f"{job}-2" not in running(narrow), 5)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_breaks_ends_with_an_error_of_its_dialect(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, dialect: str
) -> None:
    profile = tmp_path_factory.mktemp("hasty") / "hasty.toml"
    profile.write_text("[server]\nrequest_timeout_s = 1.0\n")
    server = start_server("--profile", str(profile))
    with stream(server, dialect, "slow") as answer:
        text = answer.read().decode()
    last = json.loads([line[6:] for line in text.splitlines() if line.startswith("data: ")][-1])
    if dialect == "responses":
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["code"] == "request_timeout"
    else:
        assert (last["type"], last["error"]["type"]) == ("error", "timeout_error")
    assert server.stop() == 0
