"""Pages of past jobs: the figures, their order, and files that are none."""

import csv
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from astraea_local.history import History, HistoryError, SegmentRecord
from astraea_local.past_jobs import PastJob, Query, as_csv, read
from tests.test_history import SEGMENT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite3"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History(path) as opened:
        yield opened


def _job(name: str, started: float, *waits: float, **changes: object) -> list[SegmentRecord]:
    """Segments of a job: each takes 2.75 s, with these tool waits between them."""
    records = [replace(SEGMENT, job=name, arrived=started, number=0, wait_s=None, **changes)]  # type: ignore[arg-type]
    for number, wait in enumerate(waits, start=1):
        arrived = records[-1].ended + wait
        records.append(replace(records[-1], arrived=arrived, number=number, wait_s=wait))
    return records


def _names(path: Path, **query: object) -> list[str]:
    return [job.job for job in read(path, Query.model_validate(query)).jobs]


def test_segments_become_one_row(path: Path, history: History) -> None:
    history.add([*_job("a", 1000.0, 1.0, 3.0)[:2], replace(_job("a", 1000.0, 1.0, 3.0)[2], outcome="length")])
    (job,) = read(path, Query()).jobs
    assert job == PastJob(
        job="a",
        parent="parent",
        kind="kind",
        model="model",
        started=1000.0,
        ended=1012.25,
        jct_s=12.25,
        segments=3,
        tool_s=4.0,
        queued_s=1.5,
        service_s=6.75,
        prompt_tokens=3000,
        cached_tokens=2700,
        cached_share=0.9,
        output_tokens=120,
        preemptions=3,
        outcome="length",
    )


def test_one_name_in_two_lives_of_the_engine_is_two_jobs(path: Path, history: History) -> None:
    history.add(_job("a", 1000.0, run="one") + _job("a", 2000.0, run="two"))
    assert [job.started for job in read(path, Query()).jobs] == [2000.0, 1000.0]


def test_pages_order_and_filter(path: Path, history: History) -> None:
    history.add(_job("beta", 1000.0, 50.0) + _job("alpha", 2000.0) + _job("gamma%", 3000.0, 9.0, 9.0))
    assert _names(path) == ["gamma%", "alpha", "beta"]
    assert _names(path, sort="job", order="asc") == ["alpha", "beta", "gamma%"]
    assert _names(path, sort="jct_s") == ["beta", "gamma%", "alpha"]
    assert _names(path, sort="segments", order="asc", limit=1, offset=1) == ["beta"]
    assert _names(path, job="et") == ["beta"]
    assert _names(path, job="%") == ["gamma%"]
    page = read(path, Query(limit=2, offset=2))
    assert (page.total, page.offset, len(page.jobs)) == (3, 2, 1)
    assert read(path, Query(offset=3)).jobs == []


@pytest.mark.parametrize(
    "wrong", [{"sort": "id; DROP TABLE segments"}, {"order": "up"}, {"limit": 0}, {"offset": -1}]
)
def test_a_wrong_query_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Query.model_validate(wrong)


def test_without_a_file_there_are_no_jobs_and_there_still_is_no_file(path: Path) -> None:
    assert read(path, Query()).total == 0
    assert not path.exists()


def test_a_file_that_is_no_history_is_named_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like a header of one" * 20)
    with pytest.raises(HistoryError, match=str(path)):
        read(path, Query())
    with closing(sqlite3.connect(path.with_name("other"))) as other:
        other.execute("CREATE TABLE x (y)")
    with pytest.raises(HistoryError, match="not a history"):
        read(path.with_name("other"), Query())
    assert path.read_bytes().startswith(b"not a database")


def test_it_reads_while_the_server_writes(path: Path, history: History) -> None:
    history.add(_job("a", 1000.0))
    assert _names(path) == ["a"]
    history.add(_job("b", 2000.0))
    assert _names(path) == ["b", "a"]


def test_csv_survives_names_with_commas_and_quotes(path: Path, history: History) -> None:
    name = 'odd, "name"\nof a job'
    history.add(_job(name, 1000.0))
    (row,) = csv.DictReader(as_csv(read(path, Query()).jobs).splitlines(keepends=True))
    assert list(row) == list(PastJob.model_fields)
    assert row["job"].splitlines() == name.splitlines()
    assert float(row["jct_s"]) == 2.75
