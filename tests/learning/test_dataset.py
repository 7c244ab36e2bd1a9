"""Rows know nothing that was not known."""

import math
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.history import HistoryError, SegmentRecord
from astraea_local.learning.dataset import Rows, Step, build, feed, read, replay, wait_s
from astraea_local.scheduler.learned import OUTPUT_FEATURES, WAIT_FEATURES, Statistics
from tests.learning.histories import SEGMENT, history, write

RECORDS = history(20, 6, seed=3)


def steps(records: list[SegmentRecord]) -> list[tuple[str, int, Step]]:
    return [(record.job, record.number, step) for step, record in replay(records)]


def output_rows(records: list[SegmentRecord]) -> dict[tuple[str, int], dict[str, float]]:
    """Features by job and number."""
    arrivals = [(record.job, record.number) for step, record in replay(records) if step is Step.ARRIVES]
    rows = build(records).outputs.features.tolist()
    return {
        key: dict(zip(OUTPUT_FEATURES, row, strict=True)) for key, row in zip(arrivals, rows, strict=True)
    }


def test_events_are_in_the_order_of_time() -> None:
    first = replace(SEGMENT, arrived=10.0)
    other = replace(SEGMENT, job="other", arrived=10.5)
    second = replace(SEGMENT, number=1, arrived=13.0, wait_s=2.0)
    assert steps([first, other, second]) == [
        ("job", 0, Step.ARRIVES),
        ("other", 0, Step.ARRIVES),
        ("job", 0, Step.ENDS),
        ("job", 1, Step.WAIT_BEGINS),
        ("other", 0, Step.ENDS),
        ("job", 1, Step.WAIT_ENDS),
        ("job", 1, Step.ARRIVES),
        ("job", 1, Step.ENDS),
    ]


def test_what_takes_no_time_keeps_its_order() -> None:
    instant = replace(SEGMENT, queued_s=0.0, prefill_s=0.0, decode_s=0.0, wait_s=0.0)
    found = [(number, step) for _, number, step in steps([instant, replace(instant, number=1)])]
    assert found == [(number, step) for number in (0, 1) for step in Step]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_a_clock_that_steps_never_swaps_the_events_of_a_job(arrivals: list[float]) -> None:
    records = [replace(SEGMENT, number=n, arrived=at, wait_s=1.0) for n, at in enumerate(arrivals)]
    expected = [("job", n, step) for n in range(len(arrivals)) for step in Step]
    assert steps(records) == expected


def test_segments_without_a_time_are_left_out() -> None:
    assert steps([replace(SEGMENT, arrived=math.inf), replace(SEGMENT, decode_s=math.inf)]) == []
    assert steps([replace(SEGMENT, wait_s=math.inf)]) == [("job", 0, Step.ARRIVES), ("job", 0, Step.ENDS)]


def test_jobs_of_other_lives_are_other_jobs() -> None:
    again = replace(SEGMENT, run="later", arrived=100.0)
    assert build([SEGMENT, again]).outputs.features[1][0] == 0
    assert build([SEGMENT, replace(again, run="run")]).outputs.features[1][0] == math.log(2)


def test_each_segment_is_a_row_and_each_known_wait() -> None:
    built = build(RECORDS)
    assert built.outputs.features.shape == (120, len(OUTPUT_FEATURES))
    assert built.waits.features.shape == (100, len(WAIT_FEATURES))
    assert sorted(built.outputs.targets) == sorted(math.log(record.output_tokens) for record in RECORDS)
    assert len(build([]).outputs) == len(build([]).waits) == 0
    assert build([]).outputs.features.shape == (0, len(OUTPUT_FEATURES))


def test_targets_have_a_least_value() -> None:
    built = build([replace(SEGMENT, output_tokens=0, wait_s=0.0)])
    assert built.outputs.targets.tolist() == [0.0]
    assert built.waits.targets.tolist() == [math.log(1e-3)]
    with pytest.raises(ValueError, match="unknown"):
        wait_s(SEGMENT)


@given(st.integers(0, len(RECORDS) - 1), st.integers(1, 10**6))
def test_an_output_is_unknown_until_it_has_ended(index: int, output_tokens: int) -> None:
    changed = RECORDS[index]
    before = output_rows(RECORDS)
    after = output_rows(
        [*RECORDS[:index], replace(changed, output_tokens=output_tokens), *RECORDS[index + 1 :]]
    )
    for record in RECORDS:
        if record.arrived <= changed.ended and record.job != changed.job:
            assert before[record.job, record.number] == after[record.job, record.number]
    same = changed.job, changed.number
    assert before[same] == after[same]


@given(st.integers(0, len(RECORDS) - 1), st.floats(0, 1e5))
def test_a_wait_is_unknown_until_it_has_ended(index: int, extra: float) -> None:
    records = list(RECORDS)
    changed = replace(records[index], tool="bash:sleep", wait_s=records[index].wait_s or 0.0)
    records[index] = changed
    longer = list(records)
    longer[index] = replace(changed, wait_s=(changed.wait_s or 0.0) + extra, arrived=changed.arrived + extra)
    before, after = wait_rows(records), wait_rows(longer)
    for record in records:
        if record.wait_s is not None and (record is changed or began(record) < began(changed)):
            assert before[record.job, record.number] == after[record.job, record.number]


def began(record: SegmentRecord) -> float:
    return record.arrived - (record.wait_s or 0.0)


def wait_rows(records: list[SegmentRecord]) -> dict[tuple[str, int], list[float]]:
    """Features by job and number."""
    begun = [(record.job, record.number) for step, record in replay(records) if step is Step.WAIT_BEGINS]
    return dict(zip(begun, build(records).waits.features.tolist(), strict=True))


def test_the_server_sees_the_same_features_as_training() -> None:
    """One statistics object that is fed as things happen gives the rows of the whole history."""
    statistics = Statistics()
    asked = []
    for step, record in replay(RECORDS):
        feed(statistics, step, record)
        if step is Step.ARRIVES:
            asked.append(
                statistics.output_features(
                    record.kind,
                    f"run/{record.job}",
                    prompt_tokens=record.prompt_tokens,
                    new_tokens=record.new_tokens,
                    max_output=record.max_output,
                )
            )
    assert build(RECORDS).outputs.features.tolist() == [list(features) for features in asked]


@given(st.integers(20, 3000))
def test_parts_are_in_order_and_complete(count: int) -> None:
    rows = build([replace(SEGMENT, arrived=float(n), output_tokens=n + 1) for n in range(count)]).outputs
    training, validation, held_out = rows.split()
    targets = [*training.targets, *validation.targets, *held_out.targets]
    assert targets == rows.targets.tolist() == sorted(targets)
    assert len(held_out) == len(validation) == count // 5
    assert rows.held_out_from == count - count // 5
    assert isinstance(held_out, Rows)


def test_records_of_one_model_are_read(tmp_path: Path) -> None:
    other = replace(SEGMENT, model="other")
    path = write(tmp_path / "history.sqlite3", [SEGMENT, other])
    assert read(path, None) == [SEGMENT, other]
    assert read(path, "other") == [other]


def test_no_file_is_no_records_and_none_is_made(tmp_path: Path) -> None:
    assert read(tmp_path / "history.sqlite3", None) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_newer_version_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(HistoryError, match="newer"):
        read(path, None)


def test_order_of_the_file_does_not_matter_for_other_jobs() -> None:
    """Records of several servers may be added in any order."""
    jobs = [[record for record in RECORDS if record.job == f"job {n}"] for n in range(20)]
    random.Random(0).shuffle(jobs)
    shuffled = [record for job in jobs for record in job]
    assert output_rows(shuffled) == output_rows(RECORDS)
