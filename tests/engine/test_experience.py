from dataclasses import replace
from pathlib import Path

import pytest

from astraea_local.engine.experience import Experience
from astraea_local.history import History, SegmentRecord
from astraea_local.profile import PredictionSettings
from astraea_local.scheduler.job import Job

_MODEL = "some-model"
_RECORD = SegmentRecord(
    run="run",
    model=_MODEL,
    job="a",
    kind="tests",
    parent=None,
    number=0,
    arrived=1000.0,
    queued_s=0.0,
    prefill_s=0.1,
    decode_s=0.2,
    prompt_tokens=500,
    cached_tokens=0,
    output_tokens=700,
    max_output=4096,
    new_tokens=500,
    preemptions=0,
    tool="",
    wait_s=None,
    outcome="stop",
)


def _past(calls: int, wait_s: float) -> list[SegmentRecord]:
    first = [replace(_RECORD, job=f"job-{i}", arrived=1000.0 + i) for i in range(30)]
    later = [
        replace(r, number=n, arrived=r.arrived + 60.0 * n, tool="bash:make", wait_s=wait_s)
        for n in range(1, calls)
        for r in first
    ]
    return first + later


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite3"


def _begin(path: Path, **settings: bool) -> Experience:
    return Experience(_MODEL, PredictionSettings(**settings), 80.0, path)


def test_the_next_start_predicts_from_what_was_recorded(path: Path) -> None:
    with History(path) as history:
        history.add(_past(calls=4, wait_s=45.0))
    experience = _begin(path)
    job = Job("new", 0.0, kind="tests", tool="bash:make")
    assert experience.records == 120
    assert experience.predictor.output(job, 500, 4096).quantile(0.5) == pytest.approx(700, rel=0.15)
    assert experience.predictor.wait(job).quantile(0.5) == pytest.approx(45, rel=0.15)
    assert experience.predictor.rest(job).segments == pytest.approx(3, abs=0.7)
    experience.close()


def test_segments_of_another_model_are_not_taken_over(path: Path) -> None:
    with History(path) as history:
        history.add([replace(_RECORD, model="other")])
    experience = _begin(path)
    assert experience.records == 0
    experience.close()


def test_what_is_recorded_is_on_disk_after_the_end(path: Path) -> None:
    experience = _begin(path)
    experience.record(_RECORD)
    experience.close()
    with History(path) as history:
        assert history.segments() == [_RECORD]


def test_without_history_nothing_is_written(path: Path) -> None:
    experience = _begin(path, history=False)
    experience.record(_RECORD)
    experience.close()
    assert not path.exists()


def test_a_history_that_cannot_be_opened_does_not_stop_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    experience = _begin(tmp_path / "file" / "history.sqlite3")
    experience.record(_RECORD)
    assert experience.tick(0.0, busy=False) is None
    experience.close()
    assert "nothing is learned from earlier jobs" in caplog.text
