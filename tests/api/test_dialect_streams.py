"""Streams of both dialects while a job waits, and when the client leaves."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from astraea_local.frame import StateFrame
from tests.conftest import Server

pytestmark = pytest.mark.e2e

# They end with their context, which takes longer than any of these tests.
ENDLESS: dict[str, dict[str, Any]] = {
    "responses": {"input": "Tell a story.", "ignore_eos": True},
    "messages": {"messages": [{"role": "user", "content": "Tell a story."}], "ignore_eos": True},
}
DIALECTS = sorted(ENDLESS)


def stream(server: Server, dialect: str, job: str, **more: Any) -> Any:
    body, headers = ENDLESS[dialect] | {"stream": True} | more, {"X-Astraea-Job": job}
    return httpx.stream("POST", f"{server.base_url}/{dialect}", json=body, headers=headers, timeout=60)


def running(server: Server) -> set[str]:
    frame = StateFrame.model_validate(server.state())
    return {slot.job for slot in frame.slots if slot.segment is not None and slot.job is not None}


def until(lines: Iterator[str], wanted: str) -> None:
    """Reads up to the first line that begins so."""
    found = []
    for line in lines:
        found.append(line)
        if line.startswith(wanted):
            return
    raise AssertionError(f"{wanted!r} never came; the last lines were {found[-5:]}")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_job_that_waits_gives_signs_of_life(narrow: Server, dialect: str) -> None:
    sign = {"responses": ": queued", "messages": "event: ping"}[dialect]
    short = {"responses": {"max_output_tokens": 3}, "messages": {"max_tokens": 3}}[dialect]
    with stream(narrow, dialect, f"long-{dialect}") as long:
        narrow.wait_until(lambda: running(narrow) == {f"long-{dialect}"}, 20)
        with stream(narrow, dialect, f"short-{dialect}", **short) as waiting:
            lines = waiting.iter_lines()
            for _ in range(3):
                until(lines, sign)
            assert running(narrow) == {f"long-{dialect}"}
            long.close()
            rest = list(lines)
    names = [line[7:] for line in rest if line.startswith("event: ") and line != "event: ping"]
    assert names[-1] == {"responses": "response.incomplete", "messages": "message_stop"}[dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_leaves_a_stream_frees_its_slot(narrow: Server, dialect: str) -> None:
    job = f"leaver-{dialect}"
    with stream(narrow, dialect, job) as answer:
        # Kept in a name: httpx hangs up when nobody holds the iterator any more.
        lines = answer.iter_lines()
        until(lines, "data: ")
        narrow.wait_until(lambda: running(narrow) == {job}, 20)
    narrow.wait_until(lambda: not running(narrow), 5)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_waits_for_no_whole_answer_frees_its_slot(narrow: Server, dialect: str) -> None:
    url, job = f"{narrow.base_url}/{dialect}", f"impatient-{dialect}"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=ENDLESS[dialect], headers={"X-Astraea-Job": job}, timeout=1)
    assert job in {row.job for row in StateFrame.model_validate(narrow.state()).jobs}
    narrow.wait_until(lambda: not running(narrow), 5)


def test_a_stream_that_breaks_ends_with_an_error_of_its_dialect(strict: Server) -> None:
    def last(dialect: str) -> Any:
        with stream(strict, dialect, f"slow-{dialect}") as answer:
            return json.loads([line[6:] for line in answer.iter_lines() if line.startswith("data: ")][-1])

    with ThreadPoolExecutor(2) as pool:
        response, message = pool.map(last, ("responses", "messages"))
    assert response["type"] == "response.failed"
    assert response["response"]["error"]["code"] == "request_timeout"
    assert (message["type"], message["error"]["type"]) == ("error", "timeout_error")
