"""Past jobs over HTTP."""

import csv
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from astraea_local.past_jobs import PastJob
from tests.conftest import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for job in ("past-one", "past-two", "past-two"):
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True}
            client.post("/v1/chat/completions", json=body, headers={"X-Astraea-Job": job})
        # Records are written by a thread, once a second.
        server.wait_until(lambda: [job["segments"] for job in _jobs(client)] == [2, 1], 30)
        yield client


def _jobs(http: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    page = http.get("/astraea/v1/history", params={"job": "past-", **params}).raise_for_status().json()
    found: list[dict[str, Any]] = page["jobs"]
    return found


def test_finished_jobs_are_added_up(http: httpx.Client) -> None:
    two, one = _jobs(http)
    assert (two["job"], two["segments"], two["output_tokens"], two["outcome"]) == ("past-two", 2, 6, "length")
    assert two["jct_s"] >= two["service_s"] + two["tool_s"] > 0
    assert 0 < two["cached_share"] < 1
    assert (one["job"], one["cached_share"]) < ("past-two", 1)


def test_pages_and_order(http: httpx.Client) -> None:
    assert [job["job"] for job in _jobs(http, sort="job", order="asc")] == ["past-one", "past-two"]
    answer = http.get("/astraea/v1/history", params={"job": "past-", "limit": 1, "offset": 1})
    page = answer.json()
    assert (page["total"], page["limit"], page["offset"], len(page["jobs"])) == (2, 1, 1, 1)
    assert answer.headers["X-Total-Count"] == "2"


@pytest.mark.parametrize("how", [{"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}])
def test_csv(http: httpx.Client, how: dict[str, Any]) -> None:
    answer = http.get("/astraea/v1/history", **how)
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert list(rows[0]) == list(PastJob.model_fields)
    assert {"past-one", "past-two"} <= {row["job"] for row in rows}


@pytest.mark.parametrize(
    ("wrong", "param"), [({"sort": "color"}, "sort"), ({"limit": 0}, "limit"), ({"format": "xml"}, "format")]
)
def test_a_wrong_query_is_refused(http: httpx.Client, wrong: dict[str, Any], param: str) -> None:
    answer = http.get("/astraea/v1/history", params=wrong)
    assert answer.status_code == 400
    assert param in answer.json()["error"]["param"]
