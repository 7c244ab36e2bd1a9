"""A segment's way from submission to its end, and who is told of each step of it.

The scheduler, the residency of KV, the timelines, the figures and the front each keep an account of their
own of the same segments; here is the one place that keeps them alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from astraea_local.engine.completion import Completions
from astraea_local.engine.eventlog import EngineLog
from astraea_local.engine.messages import Failed, Paused, Started, ToFront
from astraea_local.engine.recorder import Recorder, follows
from astraea_local.engine.residency import Residency
from astraea_local.engine.run import Run
from astraea_local.engine.slots import Sequence
from astraea_local.engine.timeline import Timelines
from astraea_local.frame import Totals
from astraea_local.scheduler.scheduler import NewSegment, Scheduler


@dataclass(slots=True)
class Stale:
    """What no longer holds and has to be looked at again before the next step."""

    plan: bool = True
    cached: bool = False
    """How much of their contexts the waiting segments find in KV."""


@dataclass(slots=True)
class Lifecycle:
    """The segments of one engine that have not ended."""

    scheduler: Scheduler
    residency: Residency
    runs: dict[int, Run]
    """By segment id: all that are queued or running."""
    timelines: Timelines
    completions: Completions
    totals: Totals
    log: EngineLog
    recorder: Recorder | None
    clock: Callable[[], float]
    stream_interval_s: float
    """Least time between two pieces of a stream: each takes front and client much of a token's time."""
    order: list[Run] = field(default_factory=list)
    """Those that have a sequence, in the order of the last plan."""
    stale: Stale = field(default_factory=Stale)
    _messages: list[ToFront] = field(default_factory=list)

    def take_messages(self) -> list[ToFront]:
        """What the front has to be told, since the last call."""
        taken, self._messages = self._messages, []
        return taken

    # -- in ----------------------------------------------------------------------------------------

    def submitted(self, run: Run) -> None:
        """Queues a new run."""
        request, now = run.request, run.submitted_at
        job = self.scheduler.jobs.get(request.job)
        if job is not None:
            run.back = follows(job, len(request.prompt), now)
        self.runs[request.segment] = run
        self.residency.returned(request.job)
        cached, restore_s = self.residency.reusable(run.context.view(), request.job)
        self.scheduler.submit(
            now,
            NewSegment(
                id=request.segment,
                job=request.job,
                prompt_tokens=len(request.prompt),
                max_output=request.max_output,
                cached=cached,
                restore_s=restore_s,
                parent=request.parent,
                priority=request.priority,
                kind=request.kind,
                tool=request.tool,
            ),
        )
        self.timelines.submitted(now, request)
        self.completions.arrived(now, request.job, request.segment)
        self.totals.prompt_tokens += len(request.prompt)
        self.stale.plan = True

    def reject(self, segment: int, message: str, code: str) -> None:
        """Answers a segment that is not queued with `Failed`."""
        self._failed(segment, message, code)

    # -- under way ---------------------------------------------------------------------------------

    def admitted(self, run: Run, sequence: Sequence, length: int, now: float) -> None:
        """Gives the run a sequence in which the first `length` tokens of its context are in KV."""
        segment = run.request.segment
        sequence.segment = segment
        run.sequence = sequence
        self.scheduler.started(now, segment, length)
        self.timelines.admitted(now, segment)
        if run.started_at is None:
            run.started_at = now
            run.cached = min(length, len(run.request.prompt))
            self.totals.cached_tokens += run.cached
            self._messages.append(Started(segment, run.cached, now - run.submitted_at))
        self.stale.cached = True

    def preempt(self, run: Run, reason: str) -> None:
        """Takes the run's sequence away, with its KV left in it; the run waits for another."""
        sequence = run.sequence
        assert sequence is not None
        now = self.clock()
        kept = len(sequence.tokens)
        self._tell(run, now)
        self._take_sequence(run, sequence)
        self.residency.released(sequence, None)
        self.scheduler.stopped(now, run.request.segment, kept)
        self.timelines.paused(now, run.request.segment, reason)
        self.totals.preemptions += 1
        self.log.note("info", f"{run.request.job} paused: {reason}")
        self._messages.append(Paused(run.request.segment, reason))
        self.stale.cached = True
        self.stale.plan = True

    def sampled(self, run: Run, now: float, *, last: bool) -> None:
        """A token came out of the run; with the `last` one, its text is sent when the run is ended."""
        self.timelines.sampled(now, run.request.segment)
        if not last and now >= run.told_at + self.stream_interval_s:
            self._tell(run, now)

    def _tell(self, run: Run, now: float) -> None:
        if (delta := run.delta()) is not None:
            run.told_at = now
            self._messages.append(delta)

    # -- out ---------------------------------------------------------------------------------------

    def end(self, run: Run, reason: str) -> None:
        """Ends a run, queued or running, with `stop`, `length` or `cancelled`; its KV stays reusable."""
        now = self.clock()
        finished = run.finished(reason, now)
        self._messages.append(finished)
        if self.recorder is not None:
            segment = self.scheduler.segments[run.request.segment]
            self.recorder.ended(run, finished, segment.preemptions, now)
        self._discard(run, now, reason)

    def fail(self, run: Run, message: str, code: str) -> None:
        """Ends a run that cannot be completed with `Failed`."""
        self._failed(run.request.segment, message, code)
        self._discard(run, self.clock(), "failed")

    def _failed(self, segment: int, message: str, code: str) -> None:
        self.totals.segments_failed += 1
        self.log.note("error", message)
        self._messages.append(Failed(segment, message, code))

    def _discard(self, run: Run, now: float, outcome: str) -> None:
        segment, job_id = run.request.segment, run.request.job
        mine = run.sequence
        if mine is not None:
            self._take_sequence(run, mine)
            # Only the latest context of a job is expected back; older branches may go first.
            for other in self.residency.table.idle():
                if other is not mine and other.job == job_id:
                    other.job = None
        elif self.residency.attached:
            self.residency.placer.give_up(segment)
        ended = self.scheduler.finish(now, segment)
        self.timelines.ended(now, ended, outcome)
        self.completions.ended(now, ended)
        del self.runs[segment]
        run.close()
        if mine is not None:
            job = self.scheduler.jobs[job_id]
            waits = not job.active and not job.final
            self.residency.released(mine, self.scheduler.predictor.wait(job) if waits else None)
        self.stale.plan = True
        self.stale.cached = True

    def _take_sequence(self, run: Run, sequence: Sequence) -> None:
        sequence.segment = None
        run.sequence = None
        if run in self.order:
            self.order.remove(run)
