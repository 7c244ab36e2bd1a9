"""What is kept of a segment that has ended."""

import time
from pathlib import Path

import numpy as np
import pytest

from astraea_local.engine.binding import Guides, Model
from astraea_local.engine.messages import Submit
from astraea_local.engine.recorder import Recorder, follows
from astraea_local.engine.run import Run
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.text import PieceTable
from astraea_local.history import SegmentRecord
from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.scheduler import NewSegment, Scheduler, View
from astraea_local.scheduler.speeds import Speeds


def _ends(scheduler: Scheduler, segment: int, start: float, end: float) -> None:
    scheduler.plan(start, View(Speeds()))
    scheduler.started(start, segment, 0)
    scheduler.finish(end, segment)


def test_a_segment_knows_how_it_follows_the_one_before() -> None:
    scheduler = Scheduler(SchedulerSettings(), 1)
    scheduler.submit(0.0, NewSegment(1, "a", prompt_tokens=10, max_output=10))
    overlapping = follows(scheduler.jobs["a"], 14, 1.0)
    assert (overlapping.number, overlapping.wait_s, overlapping.new_tokens) == (1, None, 14)
    _ends(scheduler, 1, 0.0, 5.0)
    back = follows(scheduler.jobs["a"], 14, 7.5)
    assert (back.number, back.wait_s, back.new_tokens) == (1, 2.5, 4)
    shorter = follows(scheduler.jobs["a"], 3, 7.5)
    assert shorter.new_tokens == 0


def test_a_record_says_when_its_segment_arrived_and_what_became_of_it(demo_path: Path) -> None:
    kept: list[SegmentRecord] = []
    recorder = Recorder("model", kept.append)
    with Model(demo_path, vocab_only=True) as model:
        request = Submit(1, "a", np.array([5, 6, 7], dtype=np.int32), 8, SamplingParams(), tool="bash")
        run = Run(request, model.vocab, Guides(model.vocab), PieceTable(model.vocab), 100.0)
        recorder.ended(run, run.finished("cancelled", 103.0), 2, 103.0)
        run.close()
    (record,) = kept
    assert record.arrived == pytest.approx(time.time() - 3, abs=1)
    assert (record.run, record.model, record.job, record.tool) == (recorder.life, "model", "a", "bash")
    assert (record.queued_s, record.prompt_tokens, record.max_output) == (3.0, 3, 8)
    assert (record.preemptions, record.outcome) == (2, "cancelled")
    assert Recorder("model", kept.append).life != recorder.life
