"""What one frame alone does not show: rates, the whole event log, and what each job did."""

from collections import deque
from collections.abc import Sequence
from itertools import count, islice

from astraea_local.frame import Event, JobRow, StateFrame
from astraea_local.job_detail import Span, SpanKind

SAMPLES = 600
LOG_LINES = 10_000
_SPANS = 400
_JOBS = 2000
_KINDS: dict[str, SpanKind] = {
    "queued": "queued",
    "prefill": "prefill",
    "decode": "decode",
    "preempted": "paused",
    "waiting": "tool",
}


class Trail:
    """Fed with every frame that is shown; all of it is bounded."""

    def __init__(self) -> None:
        self.decode: deque[float] = deque(maxlen=SAMPLES)
        """Tokens decoded per second, a sample for each frame; likewise the others."""
        self.prefill: deque[float] = deque(maxlen=SAMPLES)
        self.queued: deque[float] = deque(maxlen=SAMPLES)
        """Waiting segments."""
        self.completion: deque[float] = deque(maxlen=SAMPLES)
        """Mean job completion time, seconds; grows only when a job has ended."""
        self.log: deque[Event] = deque(maxlen=LOG_LINES)
        self.logged = 0
        """Events ever added to the log."""
        self._spans: dict[str, deque[Span]] = {}
        self._last: StateFrame | None = None
        self._own = count(-1, -1)

    def add(self, frame: StateFrame) -> None:
        """Takes a frame that came after all earlier ones; counters that fell are a new engine."""
        last = self._last
        if last is not None and frame.at > last.at:
            self._sample(last, frame)
        self._follow(frame.jobs, frame.at)
        self._take_events(frame.events, None if last is None else last.events)
        self._last = frame

    def note(self, at: float, level: str, text: str) -> None:
        """A line of our own in the log: an action, or a line of the server's output."""
        event = Event.model_validate({"id": next(self._own), "at": at, "level": level, "text": text})
        self.log.append(event)
        self.logged += 1

    def spans(self, job: str) -> list[Span]:
        """What the job did as far as it was watched, oldest first; exact to the time between two frames."""
        return list(self._spans.get(job, ()))

    def _sample(self, last: StateFrame, frame: StateFrame) -> None:
        seconds = frame.at - last.at
        decoded = frame.totals.decoded_tokens - last.totals.decoded_tokens
        prefilled = frame.totals.prefilled_tokens - last.totals.prefilled_tokens
        self.queued.append(float(len(frame.queue)))
        if decoded >= 0 and prefilled >= 0:
            self.decode.append(decoded / seconds)
            self.prefill.append(prefilled / seconds)
        if frame.completion.finished > last.completion.finished:
            self.completion.append(frame.completion.mean_s)

    def _take_events(self, events: Sequence[Event], before: Sequence[Event] | None) -> None:
        for event in _new(events, before):
            self.log.append(event)
            self.logged += 1

    def _follow(self, jobs: Sequence[JobRow], at: float) -> None:
        for job in jobs:
            spans = self._spans.get(job.job)
            kind = _kind(job)
            last = spans[-1] if spans else None
            if last is not None and last.end is None:
                if last.kind == kind and (kind not in ("tool", "parked") or last.tier == job.kv):
                    continue
                last.end = max(last.start, at - job.since_s) if last.kind != kind else at
            if kind is None:
                continue
            if spans is None:
                spans = self._spans[job.job] = deque(maxlen=_SPANS)
                if len(self._spans) > _JOBS:
                    del self._spans[next(iter(self._spans))]
            start = at - job.since_s if last is None or last.end is None else last.end
            tier = job.kv if kind in ("tool", "parked") else None
            spans.append(Span(kind=kind, start=start, tier=tier))


def _kind(job: JobRow) -> SpanKind | None:
    if job.state == "waiting" and job.kv in ("ram", "disk"):
        return "parked"
    return _KINDS.get(job.state)


def _new(events: Sequence[Event], before: Sequence[Event] | None) -> Sequence[Event]:
    """Those that were not in the frame before; servers that do not number them are compared by content."""
    if not before or not events:
        return events
    newest = before[-1]
    if newest.id:
        # Numbers that began again are those of another server.
        return events if events[-1].id < newest.id else [e for e in events if e.id > newest.id]
    for index in range(len(events) - 1, -1, -1):
        if events[index].at == newest.at and events[index].text == newest.text:
            return list(islice(events, index + 1, None))
    return events
