"""Scheduler: events in, `Plan` out. The engine executes the plan; the simulator does too."""

from collections.abc import Iterator
from dataclasses import dataclass

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.job import Job, Segment, SegmentState
from astraea_local.scheduler.policies import Policy, Rank, make
from astraea_local.scheduler.predictor import Speeds, predict_output, remaining_output, service_s

# Most tools return within this time (86 % of an agent's calls within 1 s, 95 % within 10 s).
_BACK_SOON_S = 10.0


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A request as it arrives."""

    id: int
    job: str
    prompt_tokens: int
    max_output: int
    cached: int = 0
    restore_s: float = 0.0
    parent: str | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What the engine knows and the scheduler does not."""

    speeds: Speeds
    room: int | None = None
    """KV cells that admitted segments may take, reclaimable ones included; None = no common pool."""
    deferred: frozenset[int] = frozenset()
    """Segments whose prefix another running segment is computing at this moment."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to do, and why."""

    segment: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the engine does before its next step: preempt, then admit, then compute in order."""

    preempt: tuple[Decision, ...]
    admit: tuple[Decision, ...]
    order: tuple[int, ...]
    """Running segments after the plan, first the one whose prefill goes first."""


class Scheduler:
    """Keeps jobs and segments, and decides. Not thread-safe; one owner calls it."""

    def __init__(self, settings: SchedulerSettings, slots: int) -> None:
        self.settings = settings
        self.slots = slots
        self.policy: Policy = make(settings.policy, settings)
        self.jobs: dict[str, Job] = {}
        self.segments: dict[int, Segment] = {}

    def submit(self, now: float, new: NewSegment) -> Segment:
        """Takes a request in; its job is created when it is the first. Raises `ValueError` on a known id."""
        if new.id in self.segments:
            raise ValueError(f"segment {new.id} was submitted before")
        job = self.jobs.get(new.job)
        if job is None:
            job = self.jobs[new.job] = Job(id=new.job, created=now, parent=new.parent)
        if new.priority is not None:
            job.priority = new.priority
        segment = Segment(
            id=new.id,
            job=new.job,
            prompt_tokens=new.prompt_tokens,
            max_output=new.max_output,
            arrived=now,
            predicted_output=predict_output(job, new.max_output, self.settings.predicted_output_tokens),
            cached=new.cached,
            restore_s=new.restore_s,
            since=now,
        )
        self.segments[new.id] = segment
        job.active.add(new.id)
        job.final = False
        return segment

    def advance(self, segment_id: int, *, computed: int, output: int) -> None:
        """Records a step of a running segment: tokens put into KV, and tokens that came out."""
        segment = self.segments[segment_id]
        segment.computed += computed
        segment.quantum += computed
        segment.output += output
        self.jobs[segment.job].attained += computed

    def finish(self, now: float, segment_id: int) -> Segment:
        """Takes a finished or cancelled segment out; its job now waits for its client."""
        segment = self.segments.pop(segment_id)
        job = self.jobs[segment.job]
        job.active.discard(segment_id)
        job.waited += segment.waited_at(now)
        job.segments += 1
        job.output_tokens += segment.output
        job.since = now
        return segment

    def end_job(self, job_id: str) -> None:
        """The client said that the job is over; it is kept for display until `forget`."""
        if job_id in self.jobs:
            self.jobs[job_id].final = True

    def forget(self, before: float) -> list[str]:
        """Drops jobs that have waited for their client since before that time; returns their ids."""
        old = [job.id for job in self.jobs.values() if not job.active and job.since < before]
        for job_id in old:
            del self.jobs[job_id]
        return old

    def set_cached(self, segment_id: int, cached: int, restore_s: float) -> None:
        """The engine found more, or lost some, of the KV of a waiting segment."""
        segment = self.segments[segment_id]
        segment.cached, segment.restore_s = cached, restore_s

    def started(self, now: float, segment_id: int, computed: int) -> None:
        """A segment got its slot with `computed` tokens of KV already in it."""
        segment = self.segments[segment_id]
        segment.waited += now - segment.since
        segment.state, segment.since = SegmentState.RUNNING, now
        segment.computed = computed
        segment.quantum = 0

    def stopped(self, now: float, segment_id: int, cached: int) -> None:
        """A running segment lost its slot and waits again, with `cached` tokens of KV kept somewhere."""
        segment = self.segments[segment_id]
        segment.state, segment.since = SegmentState.WAITING, now
        segment.cached, segment.computed = cached, 0
        segment.preemptions += 1

    def plan(self, now: float, view: View) -> Plan:
        """What to preempt, whom to admit, and in which order to prefill."""
        rank, jobs = self.policy.rank, self.jobs
        ranks = {s.id: rank(s, jobs[s.job], now, view.speeds) for s in self.segments.values()}
        running = sorted(self._in_state(SegmentState.RUNNING), key=lambda s: ranks[s.id])
        waiting = sorted(self._in_state(SegmentState.WAITING), key=lambda s: ranks[s.id])
        ready = [s for s in waiting if s.id not in view.deferred]
        width = self.width(now, view.speeds)
        admit = self._fitting(ready, max(0, width - len(running)), view.room, alone=not running)
        preempt: list[Segment] = []
        if not admit and ready and len(running) >= width:
            preempt = self._victim(ready[0], running, ranks, view.speeds)
            room = None if view.room is None else view.room + sum(s.computed for s in preempt)
            admit = self._fitting(ready, len(preempt), room, alone=len(running) == len(preempt))
            preempt = preempt if admit else []
        after = [s for s in running if s not in preempt] + admit
        after.sort(key=lambda s: ranks[s.id])

        def decided(segment: Segment) -> Decision:
            job = self.jobs[segment.job]
            job.reason = self.policy.reason(ranks[segment.id], segment, job, now, view.speeds)
            return Decision(segment.id, job.reason)

        admitted = tuple(decided(s) for s in admit)
        preempted = tuple(Decision(s.id, f"gave way to {ready[0].job}") for s in preempt)
        for segment in preempt:
            self.jobs[segment.job].reason = f"gave way to {ready[0].job}"
        return Plan(preempted, admitted, tuple(s.id for s in after))

    def width(self, now: float, speeds: Speeds) -> int:
        """How many segments run at once. Jobs that will soon be back from a tool count as present."""
        back_soon = sum(
            not j.active and not j.final and now - j.since < _BACK_SOON_S for j in self.jobs.values()
        )
        count = len(self.segments)
        context = sum(s.context for s in self.segments.values()) / max(1, count)
        return max(1, self.policy.width(speeds, self.slots, count + back_soon, context))

    def last(self, now: float, speeds: Speeds) -> Segment | None:
        """The running segment that the policy would give up first, when the pool is full."""
        return max(
            self._in_state(SegmentState.RUNNING),
            key=lambda s: self.policy.rank(s, self.jobs[s.job], now, speeds),
            default=None,
        )

    def explain(self, segment: Segment, now: float, speeds: Speeds) -> tuple[Rank, float, str]:
        """Rank, predicted remaining service in seconds, and the reason in words; for display."""
        job = self.jobs[segment.job]
        rank = self.policy.rank(segment, job, now, speeds)
        return (
            rank,
            service_s(segment, speeds),
            self.policy.reason(rank, segment, job, now, speeds),
        )

    def _in_state(self, state: SegmentState) -> Iterator[Segment]:
        return (s for s in self.segments.values() if s.state is state)

    def _fitting(self, ready: list[Segment], places: int, room: int | None, *, alone: bool) -> list[Segment]:
        # The first that does not fit blocks those behind it: letting small ones pass would starve it.
        chosen: list[Segment] = []
        for segment in ready[:places]:
            if room is not None:
                # Beside others it must be able to come to its end, or they would push each other out.
                growth = 1 if alone else int(remaining_output(segment))
                alone = False
                room -= segment.context + growth
                if room < 0:
                    break
            chosen.append(segment)
        return chosen

    def _victim(
        self, candidate: Segment, running: list[Segment], ranks: dict[int, Rank], speeds: Speeds
    ) -> list[Segment]:
        if not self.policy.preempts:
            return []
        for victim in reversed(running):
            if self.policy.may_preempt(candidate, victim, (ranks[candidate.id], ranks[victim.id]), speeds):
                return [victim]
        return []
