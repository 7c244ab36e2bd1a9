"""What the server says about itself: health, models, metrics, tokens, state, events, and its API."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from astraea_local import __version__
from astraea_local.frame import StateFrame
from tests.conftest import Server

pytestmark = pytest.mark.e2e

COUNTERS = {"prompt_tokens", "cached_tokens", "prefilled_tokens", "decoded_tokens", "steps", "preemptions"}
COUNTERS |= {"parks", "restores", "requests"}
GAUGES = {"queue_length", "slots", "kv_cells_used", "kv_cells", "parked_bytes", "engine_restarts"}
GAUGES |= {"kv_bytes", "kv_limit_bytes", "memory_pressure", "scheduling_paused"}
GAUGES |= {"prefill_tokens_per_second", "decode_tokens_per_second"}
HISTOGRAMS = {"time_to_first_token", "inter_token_latency", "queue_wait", "job_completion"}


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """A connection to the server."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, **headers: str) -> None:
    """One short request."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": True}
    named = {f"X-Astraea-{key}": value for key, value in headers.items()}
    http.post("/v1/chat/completions", json=body, headers=named).raise_for_status()


def samples(http: httpx.Client) -> dict[str, float]:
    """All samples by name and labels."""
    return {
        f"{s.name}{sorted(s.labels.items())}": s.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for s in family.samples
    }


def frame(http: httpx.Client) -> StateFrame:
    """The state; a field that is unknown or missing is an error."""
    return StateFrame.model_validate_json(http.get("/astraea/v1/state").content, strict=True)


def test_health(http: httpx.Client) -> None:
    """A ready server is ok."""
    answer = http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_model_is_listed(http: httpx.Client, server: Server) -> None:
    """The official client finds one model, whose facts agree with the state."""
    with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0) as client:
        (model,) = client.models.list().data
    info = frame(http).server
    assert (model.id, model.owned_by) == (info.model, "astraea-local")
    assert abs(model.created - time.time()) < 7200
    meta = http.get("/v1/models").json()["data"][0]["meta"]
    assert meta == {"context": 8192, "job_context": 2048, "slots": 4, "layout": "per_slot"}


def test_metrics_are_complete_and_documented(http: httpx.Client) -> None:
    """Every family is there with its type and a help text."""
    ask(http)
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    wanted = {f"astraea_{name}": "counter" for name in COUNTERS}
    wanted |= {f"astraea_{name}": "gauge" for name in GAUGES}
    wanted |= {f"astraea_{name}_seconds": "histogram" for name in HISTOGRAMS}
    assert {n: families[n].type for n in wanted if n in families} == wanted
    assert all(f.documentation for f in families.values())


def test_metrics_move_with_requests(http: httpx.Client, server: Server) -> None:
    """One request more is one more in every count that concerns it."""
    ask(http)
    before = samples(http)
    ask(http, Job="counted", Final="true")
    name = "astraea_requests_total[('endpoint', 'chat'), ('outcome', 'finished')]"

    def grew(key: str, by: float) -> bool:
        return samples(http)[key] == before[key] + by

    assert grew(name, 1)
    for histogram in ("time_to_first_token", "inter_token_latency", "queue_wait", "job_completion"):
        assert grew(f"astraea_{histogram}_seconds_count[]", 1)
    server.wait_until(lambda: grew("astraea_decoded_tokens_total[]", 4), 10)
    assert samples(http)["astraea_prompt_tokens_total[]"] > before["astraea_prompt_tokens_total[]"]


@pytest.mark.parametrize(
    "text", ["plain text", "  two spaces\n\ttab", "日本語🙂é", "<|im_start|>user\nhi<|im_end|>", ""]
)
def test_tokens_make_a_round_trip(http: httpx.Client, text: str) -> None:
    """Any text comes back as it was, special tokens included."""
    tokens = http.post("/tokenize", json={"content": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"content": text}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "lighthouse keeper " * 200_000, "with_pieces": True}),
        ("/detokenize", {"tokens": [5] * 900_000}),
        ("/v1/completions", {"prompt": "lighthouse keeper " * 400_000}),
    ],
)
def test_a_long_text_does_not_hold_up_others(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """While it is worked on, others are answered."""
    content = json.dumps(body)
    with ThreadPoolExecutor(1) as pool:
        headers = {"Content-Type": "application/json"}
        long = pool.submit(http.post, path, content=content, headers=headers, timeout=120)
        waited = []
        while not long.done():
            began = time.monotonic()
            assert http.get("/health").status_code == 200
            waited.append(time.monotonic() - began)
        assert long.result().status_code in (200, 400)
    assert len(waited) > 5
    assert sum(waited) > 3 * max(waited)


def test_special_tokens_are_parsed_or_not(http: httpx.Client) -> None:
    """`parse_special` decides whether a marker is one token or its letters."""
    parsed = http.post("/tokenize", json={"content": "<|im_end|>"}).json()["tokens"]
    letters = http.post("/tokenize", json={"content": "<|im_end|>", "parse_special": False}).json()["tokens"]
    assert parsed == [2]
    assert len(letters) > 1


def test_pieces_spell_the_text(http: httpx.Client) -> None:
    """`with_pieces` adds what each token stands for."""
    body = {"content": "The lighthouse keeper", "with_pieces": True}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    assert "".join(t["piece"] for t in tokens) == "The lighthouse keeper"
    assert len(tokens) > 2


def test_the_state_is_a_frame_that_moves(http: httpx.Client, server: Server) -> None:
    """A request shows up in the totals and as a job that waits for its next call."""
    before = frame(http)
    ask(http, Job="shown")
    server.wait_until(lambda: frame(http).totals.decoded_tokens == before.totals.decoded_tokens + 4, 10)
    after = frame(http)
    assert (after.status, after.server.version, after.server.slots) == ("ready", __version__, 4)
    assert after.totals.segments_finished == before.totals.segments_finished + 1
    assert after.totals.steps > before.totals.steps
    assert after.uptime_s > before.uptime_s
    (job,) = (job for job in after.jobs if job.job == "shown")
    assert (job.state, job.kv) == ("waiting", "slot")
    assert job.tokens == job.kv_tokens > 20
    assert any(slot.job == "shown" and slot.phase == "resident" for slot in after.slots)


def test_a_final_job_is_done(http: httpx.Client, server: Server) -> None:
    """A job that said it is over does not wait for anything."""

    def state() -> set[str]:
        return {job.state for job in frame(http).jobs if job.job == "over"}

    ask(http, Job="over")
    server.wait_until(lambda: state() == {"waiting"}, 10)
    ask(http, Job="over", Final="1")
    server.wait_until(lambda: state() <= {"done"}, 10)


def test_events_are_frames(http: httpx.Client) -> None:
    """The event stream begins with a frame at once and goes on while something happens."""
    began = time.monotonic()
    with http.stream("GET", "/astraea/v1/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        found: list[StateFrame] = []
        while len(found) < 2:
            assert next(line for line in lines if line) == "event: frame"
            data = next(lines)
            assert data.startswith("data: ")
            found.append(StateFrame.model_validate_json(data.removeprefix("data: "), strict=True))
    assert time.monotonic() - began < 10
    assert found[0].at <= found[1].at


def test_the_policy_can_be_read_and_refused(http: httpx.Client) -> None:
    """All policies are listed with what they do; a wrong name is refused and changes nothing."""
    before = http.get("/astraea/v1/policy").json()
    assert before["policy"] == "astraea"
    assert {"astraea_paper", "fcfs", "sjf", "hrrn", "mlfq", "plas", "continuum"} < {
        known["name"] for known in before["policies"] if known["summary"]
    }
    answer = http.post("/astraea/v1/policy", json={"policy": "lottery"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "policy"
    assert http.get("/astraea/v1/policy").json() == before


def test_the_api_describes_itself(http: httpx.Client) -> None:
    """The OpenAPI document knows every endpoint and the fields of a request."""
    document = http.get("/openapi.json").json()
    paths = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/tokenize"}
    paths |= {"/detokenize", "/astraea/v1/state", "/astraea/v1/events", "/astraea/v1/history"}
    paths |= {"/astraea/v1/jobs/{job}", "/astraea/v1/jobs/{job}/{action}", "/astraea/v1/scheduler/{action}"}
    assert paths <= set(document["paths"])
    assert document["info"]["version"] == __version__
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "min_p", "grammar", "response_format"} <= set(fields)
