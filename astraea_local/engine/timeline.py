"""What each job did when: the spans of its segments and tool waits, with what was predicted of them.

Memory is bounded: the latest segments of the jobs that were active last.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from astraea_local.engine.messages import Submit
from astraea_local.frame import JobState, KvTier
from astraea_local.job_detail import JobDetail, SegmentDetail, Span, SpanKind, WaitDetail
from astraea_local.scheduler.cost import Conditions, service_s
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.scheduler import Scheduler
from astraea_local.scheduler.speeds import Speeds

_MAX_JOBS = 512
_MAX_SEGMENTS = 64
# Of one segment or one wait; further changes are not shown.
_MAX_SPANS = 64


@dataclass(slots=True)
class _Span:
    kind: SpanKind
    start: float
    tier: KvTier | None = None
    end: float | None = None


@dataclass(slots=True)
class _Wait:
    start: float
    p50: float
    p90: float
    spans: list[_Span]
    tool: str = ""
    end: float | None = None


@dataclass(slots=True)
class _Segment:
    id: int
    number: int
    arrived: float
    prompt_tokens: int
    output_p50: int
    output_p90: int
    service_s: float
    wait: _Wait | None
    spans: list[_Span]
    cached: int | None = None
    output: int = 0
    waited: float = 0.0
    preemptions: int = 0
    outcome: str = "running"
    ended: float | None = None
    reason: str = ""


@dataclass(slots=True)
class _Life:
    parent: str | None
    created: float
    segments: deque[_Segment] = field(default_factory=lambda: deque(maxlen=_MAX_SEGMENTS))
    count: int = 0
    """Segments that ever came."""
    wait: _Wait | None = None
    """Since the last segment ended; None while one is active."""


class Timelines:
    """Is told what happens to segments, and where waiting jobs' KV is; tells a job's life."""

    def __init__(self, scheduler: Scheduler, speeds: Callable[[], Speeds]) -> None:
        """`scheduler` knows jobs and predictions, `speeds` gives the present ones."""
        self._scheduler = scheduler
        self._speeds = speeds
        self._lives: OrderedDict[str, _Life] = OrderedDict()
        self._active: dict[int, _Segment] = {}

    def submitted(self, now: float, request: Submit) -> None:
        """A segment has just been given to the scheduler."""
        segment = self._scheduler.segments[request.segment]
        job = self._scheduler.jobs[request.job]
        life = self._lives.get(job.id)
        if life is None:
            life = self._lives[job.id] = _Life(job.parent, job.created)
            if len(self._lives) > _MAX_JOBS:
                self._lives.popitem(last=False)
        self._lives.move_to_end(job.id)
        wait, life.wait = life.wait, None
        if wait is not None:
            wait.tool, wait.end = request.tool, now
            _close(wait.spans, now)
        speeds = self._speeds()
        at = Conditions(speeds, self._scheduler.width(now, speeds))
        record = _Segment(
            id=segment.id,
            number=job.segments + len(job.active) - 1,
            arrived=now,
            prompt_tokens=segment.prompt_tokens,
            output_p50=_tokens(segment, 0.5),
            output_p90=_tokens(segment, 0.9),
            service_s=service_s(segment, at),
            wait=wait,
            spans=[_Span("queued", now)],
        )
        life.segments.append(record)
        life.count += 1
        self._active[segment.id] = record

    def admitted(self, now: float, segment_id: int) -> None:
        """A segment got a slot."""
        record, segment = self._active[segment_id], self._scheduler.segments[segment_id]
        if record.cached is None:
            record.cached = min(segment.computed, segment.prompt_tokens)
        record.reason = self._scheduler.jobs[segment.job].reason
        _change(record.spans, "prefill", now)

    def sampled(self, now: float, segment_id: int) -> None:
        """A token came out of a segment."""
        spans = self._active[segment_id].spans
        if spans[-1].kind == "prefill":
            _change(spans, "decode", now)

    def paused(self, now: float, segment_id: int, reason: str) -> None:
        """A running segment lost its slot."""
        record = self._active[segment_id]
        record.reason = reason
        _change(record.spans, "paused", now)

    def ended(self, now: float, segment: Segment, outcome: str) -> None:
        """A segment has just left the scheduler."""
        record = self._active.pop(segment.id)
        record.output, record.preemptions = segment.output, segment.preemptions
        record.waited = segment.waited_at(now)
        record.outcome, record.ended = outcome, now
        _close(record.spans, now)
        job, life = self._scheduler.jobs[segment.job], self._lives.get(segment.job)
        if life is not None and not job.active and not job.final:
            expected = self._scheduler.predictor.wait(job)
            life.wait = _Wait(now, expected.quantile(0.5), expected.quantile(0.9), [_Span("tool", now)])

    def calls_tool(self, job_id: str) -> None:
        """The scheduler has just been told which tool the job waits for."""
        job, life = self._scheduler.jobs.get(job_id), self._lives.get(job_id)
        if job is not None and life is not None and life.wait is not None:
            expected = self._scheduler.predictor.wait(job)
            life.wait.p50, life.wait.p90 = expected.quantile(0.5), expected.quantile(0.9)

    def kv_at(self, now: float, job_id: str, tier: KvTier) -> None:
        """Where a job's KV is; changes are noticed when they are told."""
        life = self._lives.get(job_id)
        if life is None or life.wait is None:
            return
        last = life.wait.spans[-1]
        if last.tier is None:
            last.kind, last.tier = _kind(tier), tier
        elif last.tier != tier:
            _change(life.wait.spans, _kind(tier), now, tier)

    def detail(self, now: float, wall: float, job_id: str, state: JobState) -> JobDetail | None:
        """The job's life; `wall` is the Unix time of `now`. None for a job that is not known."""
        job, life = self._scheduler.jobs.get(job_id), self._lives.get(job_id)
        if life is None:
            if job is None:
                return None
            life = _Life(job.parent, job.created)
        shift = wall - now
        spans = [s for record in life.segments for s in _spans_of(record, shift)]
        wait = None if state != "waiting" else life.wait
        if wait is not None:
            spans += [_span(s, shift) for s in wait.spans]
        return JobDetail(
            at=wall,
            job=job_id,
            parent=life.parent,
            children=[other.id for other in self._scheduler.jobs.values() if other.parent == job_id],
            state=state,
            created=life.created + shift,
            segments=[self._segment(record, now, shift) for record in life.segments],
            forgotten=life.count - len(life.segments),
            spans=sorted(spans, key=lambda s: s.start),
            wait=None if wait is None or job is None else self._present(wait, job, now, shift),
        )

    def _segment(self, record: _Segment, now: float, shift: float) -> SegmentDetail:
        active = self._scheduler.segments.get(record.id)
        waited = record.waited if active is None else active.waited_at(now)
        until = now if record.ended is None else record.ended
        return SegmentDetail(
            segment=record.id,
            number=record.number,
            arrived=record.arrived + shift,
            ended=None if record.ended is None else record.ended + shift,
            outcome=record.outcome,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached or 0,
            output_tokens=record.output if active is None else active.output,
            predicted_output_p50=record.output_p50,
            predicted_output_p90=record.output_p90,
            waited_s=waited,
            service_s=max(0.0, until - record.arrived - waited),
            predicted_service_s=record.service_s,
            preemptions=record.preemptions if active is None else active.preemptions,
            reason=record.reason,
            wait=None if record.wait is None else _wait(record.wait, shift),
        )

    def _present(self, wait: _Wait, job: Job, now: float, shift: float) -> WaitDetail:
        lasted = now - wait.start
        expected = self._scheduler.predictor.wait(job)
        return WaitDetail(
            tool=job.tool,
            start=wait.start + shift,
            seconds=lasted,
            predicted_p50_s=expected.quantile_beyond(0.5, lasted),
            predicted_p90_s=expected.quantile_beyond(0.9, lasted),
        )


def _tokens(segment: Segment, share: float) -> int:
    return min(segment.max_output, round(segment.expected_output.quantile(share)))


def _kind(tier: KvTier) -> SpanKind:
    return "parked" if tier in ("ram", "disk") else "tool"


def _close(spans: list[_Span], now: float) -> None:
    spans[-1].end = now


def _change(spans: list[_Span], kind: SpanKind, now: float, tier: KvTier | None = None) -> None:
    if len(spans) < _MAX_SPANS:
        _close(spans, now)
        spans.append(_Span(kind, now, tier))


def _span(span: _Span, shift: float, segment: int | None = None) -> Span:
    end = None if span.end is None else span.end + shift
    return Span(kind=span.kind, start=span.start + shift, end=end, segment=segment, tier=span.tier)


def _spans_of(record: _Segment, shift: float) -> list[Span]:
    before = [] if record.wait is None else [_span(s, shift) for s in record.wait.spans]
    return before + [_span(s, shift, record.id) for s in record.spans]


def _wait(wait: _Wait, shift: float) -> WaitDetail:
    assert wait.end is not None
    return WaitDetail(
        tool=wait.tool,
        start=wait.start + shift,
        seconds=wait.end - wait.start,
        predicted_p50_s=wait.p50,
        predicted_p90_s=wait.p90,
    )
