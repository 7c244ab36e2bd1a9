"""Actions on jobs and on the scheduler, over HTTP, by a real engine with SmolLM2."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from astraea_local.frame import JobRow, StateFrame
from astraea_local.job_detail import JobDetail
from tests.conftest import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def _ask(http: httpx.Client, job: str, *, tokens: int = 4, text: str = "hi") -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return http.post("/v1/chat/completions", json=body, headers={"X-Astraea-Job": job})


def _act(http: httpx.Client, job: str, action: str, body: Any = None) -> httpx.Response:
    return http.post(f"/astraea/v1/jobs/{quote(job, safe='')}/{action}", json=body)


def _frame(http: httpx.Client) -> StateFrame:
    return StateFrame.model_validate_json(http.get("/astraea/v1/state").content)


def _row(http: httpx.Client, job: str) -> JobRow | None:
    return next((row for row in _frame(http).jobs if row.job == job), None)


def _error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def _kv(http: httpx.Client, job: str) -> str:
    row = _row(http, job)
    return "" if row is None else row.kv


def test_park_pin_and_drop_are_seen_in_the_state_and_in_the_log(http: httpx.Client, server: Server) -> None:
    _ask(http, "kept")
    answer = _act(http, "kept", "park")
    done = answer.json()
    assert (answer.status_code, done["job"], done["action"]) == (200, "kept", "park")
    assert done["done"].startswith("parked ")
    assert done["done"].endswith(" tokens to RAM")
    server.wait_until(lambda: _kv(http, "kept") == "ram", 10)
    assert _ask(http, "kept").json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert _act(http, "kept", "pin").status_code == 200
    server.wait_until(lambda: any(row.pinned for row in _frame(http).jobs if row.job == "kept"), 10)
    assert _act(http, "kept", "unpin").status_code == 200
    assert _act(http, "kept", "drop").json()["done"].startswith("dropped ")
    server.wait_until(lambda: _kv(http, "kept") == "none", 10)
    lines = [event for event in _frame(http).events if event.text.startswith("kept: ")]
    assert [line.text.split()[1] for line in lines] == ["parked", "its", "its", "dropped"]
    ids = [event.id for event in _frame(http).events]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


@pytest.mark.parametrize("job", ["team/agent 7", "日本/é", "100%2F", "a/pin"])
def test_any_name_can_be_named(http: httpx.Client, job: str) -> None:
    http.post(
        "/v1/completions",
        json={"prompt": "hi", "max_tokens": 2, "prompt_cache_key": job},
    ).raise_for_status()
    found = http.get(f"/astraea/v1/jobs/{quote(job, safe='')}")
    assert found.json()["job"] == job
    assert _act(http, job, "drop").json()["job"] == job


def test_an_unknown_job_is_not_found(http: httpx.Client) -> None:
    for action in ("pin", "unpin", "park", "drop", "cancel"):
        error = _error(_act(http, "no-such", action), 404)
        assert (error["code"], error["message"]) == ("unknown_job", "there is no job 'no-such'")
    _error(_act(http, "no-such", "priority", {"priority": 1}), 404)
    _error(http.get("/astraea/v1/jobs/no-such"), 404)


def test_what_is_not_possible_says_why(http: httpx.Client) -> None:
    _ask(http, "idle")
    error = _error(_act(http, "idle", "cancel"), 409)
    assert error["code"] == "not_possible_now"
    assert error["message"] == "idle: it has no request that is queued or running"


@pytest.mark.parametrize("body", [None, {}, {"priority": 10}, {"priority": "1"}, {"priority": 1, "x": 2}])
def test_a_wrong_priority_is_refused(http: httpx.Client, body: Any) -> None:
    _ask(http, "idle")
    _error(_act(http, "idle", "priority", body), 400)


def test_a_wrong_action_is_refused(http: httpx.Client) -> None:
    error = _error(_act(http, "idle", "explode"), 400)
    assert error["param"].endswith("action")
    _error(http.post("/astraea/v1/scheduler/stop"), 400)


def test_priority_is_kept(http: httpx.Client, server: Server) -> None:
    _ask(http, "urgent")
    assert _act(http, "urgent", "priority", {"priority": 3}).json()["done"] == "priority set to 3"
    _ask(http, "urgent")
    row = _row(http, "urgent")
    assert row is not None
    assert row.priority == 3


def test_cancel_ends_a_stream_with_an_error(http: httpx.Client, server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 1500, "ignore_eos": True}
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        with httpx.stream(
            "POST",
            f"{server.base_url}/chat/completions",
            json={**body, "stream": True},
            headers={"X-Astraea-Job": "endless"},
            timeout=60,
        ) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) > 10:
                    started.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(30)
    assert _act(http, "endless", "cancel").json()["done"] == "cancelled 1 request"
    reader.join(30)
    last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"

    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(_ask, http, "endless", tokens=1500)
        server.wait_until(lambda: _row(http, "endless") is not None and _busy(http, "endless"), 20)
        _act(http, "endless", "cancel")
        assert _error(whole.result(30), 400)["code"] == "cancelled"


def _busy(http: httpx.Client, job: str) -> bool:
    row = _row(http, job)
    return row is not None and row.state in ("prefill", "decode")


def test_a_paused_scheduler_lets_requests_wait(http: httpx.Client, server: Server) -> None:
    assert http.post("/astraea/v1/scheduler/pause").json() == {
        "action": "pause",
        "done": "scheduling paused: nothing new is admitted",
    }
    try:
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(_ask, http, "patient")
            server.wait_until(lambda: any(row.job == "patient" for row in _frame(http).queue), 20)
            assert _frame(http).scheduling_paused
            resumed = http.post("/astraea/v1/scheduler/resume").json()
            assert resumed["done"] == "scheduling resumed: 1 requests waited"
            assert waits.result(30).status_code == 200
    finally:
        http.post("/astraea/v1/scheduler/resume")
    assert not _frame(http).scheduling_paused


def test_the_detail_of_a_job_is_its_timeline(http: httpx.Client) -> None:
    for _ in range(2):
        _ask(http, "traced", text="What is a lighthouse?")
    detail = JobDetail.model_validate_json(http.get("/astraea/v1/jobs/traced").content, strict=True)
    assert [s.outcome for s in detail.segments] == ["length", "length"]
    assert [s.number for s in detail.segments] == [0, 1]
    assert detail.segments[1].cached_tokens > 0
    assert detail.segments[1].wait is not None
    kinds = [span.kind for span in detail.spans if span.segment is not None]
    assert kinds == ["queued", "prefill", "decode"] * 2
    assert detail.created <= detail.spans[0].start <= detail.at
