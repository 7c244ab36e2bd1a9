"""Timelines: spans without holes, and no more memory than was promised."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.engine.messages import Submit
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.timeline import Timelines
from astraea_local.frame import KvTier
from astraea_local.job_detail import JobDetail
from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.scheduler import NewSegment, Scheduler
from astraea_local.scheduler.speeds import Speeds

_SHIFT = 1_700_000_000.0


class Told:
    """A scheduler and the timelines of what happens in it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(SchedulerSettings(), 2)
        self.timelines = Timelines(self.scheduler, Speeds)
        self.now = 0.0
        self._next = 0

    def submit(self, job: str, tool: str = "") -> int:
        self._next += 1
        prompt = np.arange(10, dtype=np.int32)
        self.scheduler.submit(self.now, NewSegment(self._next, job, 10, 20, tool=tool))
        self.timelines.submitted(self.now, Submit(self._next, job, prompt, 20, SamplingParams(), tool=tool))
        return self._next

    def admit(self, segment: int) -> None:
        self.scheduler.started(self.now, segment, 4)
        self.timelines.admitted(self.now, segment)

    def pause(self, segment: int) -> None:
        self.scheduler.stopped(self.now, segment, 4)
        self.timelines.paused(self.now, segment, "gave way to another")

    def end(self, segment: int) -> None:
        self.timelines.ended(self.now, self.scheduler.finish(self.now, segment), "stop")

    def detail(self, job: str) -> JobDetail:
        found = self.timelines.detail(self.now, self.now + _SHIFT, job, "waiting")
        assert found is not None
        return found


def test_a_pause_is_shown_with_its_reason() -> None:
    told = Told()
    segment = told.submit("a")
    for step in (told.admit, told.pause, told.admit):
        told.now += 1
        step(segment)
    told.now += 1
    told.timelines.sampled(told.now, segment)
    detail = told.detail("a")
    assert [(s.kind, s.start - _SHIFT) for s in detail.spans] == [
        ("queued", 0),
        ("prefill", 1),
        ("paused", 2),
        ("prefill", 3),
        ("decode", 4),
    ]
    assert detail.spans[-1].end is None
    (shown,) = detail.segments
    assert (shown.outcome, shown.cached_tokens, shown.preemptions) == ("running", 4, 1)
    assert (shown.waited_s, shown.service_s) == (2, 2)


def test_a_wait_follows_its_kv_from_tier_to_tier() -> None:
    told = Told()
    segment = told.submit("a")
    told.admit(segment)
    told.end(segment)
    tiers: list[KvTier] = ["slot", "slot", "ram", "disk", "slot"]
    for tier in tiers:
        told.now += 1
        told.timelines.kv_at(told.now, "a", tier)
    told.now += 1
    told.submit("a", tool="bash:pytest")
    spans = [(s.kind, s.tier, s.start - _SHIFT) for s in told.detail("a").spans if s.segment is None]
    assert spans == [("tool", "slot", 0), ("parked", "ram", 3), ("parked", "disk", 4), ("tool", "slot", 5)]
    wait = told.detail("a").segments[-1].wait
    assert wait is not None
    assert (wait.tool, wait.seconds) == ("bash:pytest", 6)


def test_the_prediction_of_a_wait_knows_how_long_it_has_lasted() -> None:
    told = Told()
    segment = told.submit("a")
    told.admit(segment)
    told.end(segment)
    early = told.detail("a").wait
    told.now = 500.0
    late = told.detail("a").wait
    assert early is not None
    assert late is not None
    assert early.predicted_p50_s < 500 < late.predicted_p50_s <= late.predicted_p90_s


def test_overlapping_segments_have_no_wait_between_them() -> None:
    told = Told()
    one, two = told.submit("a"), told.submit("a")
    told.admit(one)
    told.end(one)
    told.now = 3.0
    detail = told.detail("a")
    assert [s.number for s in detail.segments] == [0, 1]
    assert detail.wait is None
    assert {s.segment for s in detail.spans} == {one, two}


def test_jobs_that_nobody_knows_have_no_detail() -> None:
    told = Told()
    assert told.timelines.detail(0.0, _SHIFT, "nobody", "done") is None


def test_memory_is_bounded() -> None:
    told = Told()
    for _ in range(100):
        segment = told.submit("busy")
        for _ in range(50):
            told.admit(segment)
            told.pause(segment)
        told.end(segment)
    detail = told.detail("busy")
    assert (len(detail.segments), detail.forgotten) == (64, 36)
    assert len(detail.spans) <= 64 * 66
    for number in range(600):
        told.end(told.submit(f"job{number}"))
    assert told.detail("busy").segments == []
    assert len(told.detail("job599").segments) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["admit", "pause", "sample", "end", "submit", "ram", "slot"]), max_size=30))
def test_spans_join_without_holes(steps: list[str]) -> None:
    told = Told()
    segment: int | None = told.submit("a")
    running = False
    for step in steps:
        told.now += 1
        if step in ("ram", "slot"):
            told.timelines.kv_at(told.now, "a", "ram" if step == "ram" else "slot")
        elif step == "submit" and segment is None:
            segment = told.submit("a")
        elif step == "admit" and segment is not None and not running:
            told.admit(segment)
            running = True
        elif step == "pause" and segment is not None and running:
            told.pause(segment)
            running = False
        elif step == "sample" and segment is not None and running:
            told.timelines.sampled(told.now, segment)
        elif step == "end" and segment is not None:
            told.end(segment)
            segment, running = None, False
    spans = told.detail("a").spans
    assert spans[0].start == _SHIFT
    assert [a.end for a in spans[:-1]] == [b.start for b in spans[1:]]
    assert spans[-1].end is None
