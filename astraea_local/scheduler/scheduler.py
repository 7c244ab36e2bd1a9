"""Scheduler: events in, `Plan` out. The engine executes the plan; the simulator does too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, service_s, work_s
from astraea_local.scheduler.job import Job, Segment, SegmentState
from astraea_local.scheduler.policies import Policy, make
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import WaitQueue
from astraea_local.scheduler.speeds import Speeds

# Most tools return within this time (86 % of an agent's calls within 1 s, 95 % within 10 s).
_BACK_SOON_S = 10.0
# A job that sends nothing for so long is taken for one that has ended; 4 % of tool calls last a minute.
_SILENT_S = 180.0
# Keys are made anew when width or speeds differ by more than this factor from those they were made with.
_DRIFT = 1.3


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
    kind: str = ""
    """Family of jobs that begin alike."""
    tool: str = ""
    """The tool whose result it brings, `name` or `name:verb`."""


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


@dataclass(frozen=True, slots=True)
class Explained:
    """A waiting segment's place, for display."""

    level: int
    score: float
    service_s: float
    """Predicted time in a slot until its end."""
    reason: str


class Scheduler:
    """Keeps jobs and segments, and decides. Not thread-safe; one owner calls it."""

    def __init__(
        self,
        settings: SchedulerSettings,
        slots: int,
        *,
        predictor: Predictor | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`policy` replaces the one that the settings name."""
        self.settings = settings
        self.slots = slots
        self.predictor = predictor or Predictor(settings.predicted_output_tokens)
        self.policy: Policy = policy or make(settings.policy, settings, self.predictor)
        self.jobs: dict[str, Job] = {}
        self.segments: dict[int, Segment] = {}
        self.running: dict[int, Segment] = {}
        self.queue = WaitQueue()
        self._at = Conditions(Speeds())
        self._work: dict[int, float] = {}
        """Machine time of each waiting segment, as it was when it was put in the queue."""
        self._backlog = 0.0
        self._context = 0
        """Tokens of all segments' contexts."""
        self._gone: dict[str, float] = {}
        """Jobs that wait for their client, by the time at which they began to, oldest first."""
        self._over: set[str] = set()
        """Jobs that ended, or that have been silent for so long that they are taken for ended."""
        self._sunk: list[Job] = []
        """Jobs with several segments that moved to another queue since the last plan."""
        self._arrived = -math.inf
        """When the last segment came."""

    # -- events ------------------------------------------------------------------------------------

    def submit(self, now: float, new: NewSegment) -> Segment:
        """Takes a request in; its job is created when it is the first. Raises `ValueError` on a known id."""
        if new.id in self.segments:
            raise ValueError(f"segment {new.id} was submitted before")
        job = self._job_of(now, new)
        if not job.active and job.segments:
            self._back_from_tool(now, job, new)
        segment = Segment(
            id=new.id,
            job=new.job,
            prompt_tokens=new.prompt_tokens,
            max_output=new.max_output,
            arrived=now,
            expected_output=self.predictor.output(job, new.prompt_tokens, new.max_output),
            rest=self.predictor.rest(job),
            cached=new.cached,
            restore_s=new.restore_s,
            since=now,
        )
        self.segments[new.id] = segment
        self._arrived = now
        self._context += segment.context
        job.prompt_tokens += new.prompt_tokens
        job.active.add(new.id)
        job.final = job.presumed_over = False
        self._gone.pop(job.id, None)
        self._over.discard(job.id)
        self._enqueue(now, segment)
        return segment

    def advance(self, segment_id: int, *, computed: int, output: int) -> None:
        """Records a step of a running segment: tokens put into KV, and tokens that came out."""
        segment = self.running[segment_id]
        segment.computed += computed
        segment.quantum += computed
        segment.received += computed
        segment.output += output
        self._context += output
        job = self.jobs[segment.job]
        if len(job.active) < 2:
            job.attained += computed
            return
        # Its other segments, which may wait, sink with it.
        level = self.policy.level(job)
        job.attained += computed
        if self.policy.level(job) != level:
            self._sunk.append(job)

    def finish(self, now: float, segment_id: int) -> Segment:
        """Takes a finished or cancelled segment out; its job now waits for its client."""
        segment = self.segments.pop(segment_id)
        job = self.jobs[segment.job]
        self._context -= segment.context
        if segment.state is SegmentState.RUNNING:
            self._leave_slot(now, segment, job)
        else:
            self._dequeue(segment_id)
        self.policy.ended(segment, job, now, self._at)
        self.predictor.segment_ended(job, segment.output)
        job.active.discard(segment_id)
        job.waited += segment.waited_at(now)
        job.segments += 1
        job.output_tokens += segment.output
        job.context = segment.context
        job.since = now
        job.tool = ""
        if not job.active:
            self._gone[job.id] = now
            if job.final:
                self._presume_over(job)
        self._requeue(now, job)
        return segment

    def calls_tool(self, job_id: str, tool: str) -> None:
        """The job's last response called this tool, `name` or `name:verb`."""
        if job_id in self.jobs:
            self.jobs[job_id].tool = tool

    def end_job(self, job_id: str) -> None:
        """The client said that the job is over; it is kept for display until `forget`."""
        job = self.jobs.get(job_id)
        if job is not None:
            job.final = True
            if not job.active:
                self._presume_over(job)

    def forget(self, before: float) -> list[str]:
        """Drops jobs that have waited for their client since before that time; returns their ids."""
        old = [i for i in (*self._over, *self._gone) if self.jobs[i].since < before]
        for job_id in old:
            self.end_job(job_id)
            self._over.discard(job_id)
            del self.jobs[job_id]
        return old

    def set_cached(self, now: float, segment_id: int, cached: int, restore_s: float) -> None:
        """The engine found more, or lost some, of the KV of a waiting segment."""
        segment = self.segments[segment_id]
        if (segment.cached, segment.restore_s) != (cached, restore_s):
            segment.cached, segment.restore_s = cached, restore_s
            self._enqueue(now, segment)

    def started(self, now: float, segment_id: int, computed: int) -> None:
        """A segment got its slot with `computed` tokens of KV already in it."""
        segment = self.segments[segment_id]
        if not segment.received:
            self.jobs[segment.job].cached_tokens += min(computed, segment.prompt_tokens)
        segment.urgent = self.queue.is_overdue(segment_id, now)
        self._dequeue(segment_id)
        segment.waited += now - segment.since
        segment.state, segment.since = SegmentState.RUNNING, now
        segment.computed = computed
        segment.quantum = 0
        self.running[segment_id] = segment

    def stopped(self, now: float, segment_id: int, cached: int) -> None:
        """A running segment lost its slot and waits again, with `cached` tokens of KV kept somewhere."""
        segment = self.running[segment_id]
        job = self.jobs[segment.job]
        self._leave_slot(now, segment, job)
        segment.state, segment.since = SegmentState.WAITING, now
        segment.cached, segment.computed = cached, 0
        segment.preemptions += 1
        segment.urgent = False
        self._requeue(now, job)

    def set_priority(self, now: float, job_id: str, priority: int) -> None:
        """Moves a job up or down by that many queues. Raises `KeyError` for one that is not known."""
        job = self.jobs[job_id]
        job.priority = priority
        self._requeue(now, job)

    def set_policy(self, now: float, name: str) -> None:
        """Goes on with another policy. Raises `ValueError` naming the known ones."""
        self.policy = make(name, self.settings, self.predictor)
        self._renew_keys(now)

    # -- decisions ---------------------------------------------------------------------------------

    def plan(self, now: float, view: View) -> Plan:
        """What to preempt, whom to admit, and in which order to prefill."""
        width = self.width(now, view.speeds)
        self._observe(now, Conditions(view.speeds, width, self._backlog))
        policy, running = self.policy, self.running
        free = 0 if policy.batches and running else max(0, width - len(running))
        wanted = free or int(policy.preempts)
        ready = [
            self.segments[i]
            for i in self.queue.best(
                now, wanted, skip=view.deferred, first_level_only=policy.first_level_only
            )
        ]
        admit = self._fitting(ready[:free], view.room, alone=not running)
        preempt: list[Segment] = []
        if ready and not free and policy.preempts:
            preempt = self._victim(now, ready[0])
            room = None if view.room is None else view.room + sum(s.context for s in preempt)
            admit = self._fitting(ready[: len(preempt)], room, alone=len(running) == len(preempt))
            preempt = preempt if admit else []
        after = [s for s in running.values() if s not in preempt] + admit
        decided = tuple(self._decide(s, now) for s in admit)
        paused = tuple(Decision(s.id, f"gave way to {admit[0].job}") for s in preempt)
        for segment in preempt:
            self.jobs[segment.job].reason = paused[0].reason
        return Plan(paused, decided, tuple(self._prefill_order(now, after)))

    def width(self, now: float, speeds: Speeds) -> int:
        """How many segments run at once. Jobs that will soon be back from a tool count as present."""
        back_soon = 0
        for job_id in reversed(self._gone):
            if now - self._gone[job_id] >= _BACK_SOON_S or back_soon >= self.slots:
                break
            back_soon += 1
        count = len(self.segments)
        context = self._context / max(1, count)
        return max(1, self.policy.width(speeds, self.slots, count + back_soon, context))

    def last(self, now: float) -> Segment | None:
        """The running segment that the policy would give up first, when the pool is full."""
        return max(self.running.values(), key=lambda s: self._place(now, s), default=None)

    def explain(self, segment: Segment, now: float) -> Explained:
        """Where a waiting segment stands, and why."""
        job = self.jobs[segment.job]
        key = self.queue.key(segment.id)
        reason = self.policy.reason(segment, job, now, self._at)
        return Explained(key.level, key.score(now), service_s(segment, self._at), reason)

    # -- inside ------------------------------------------------------------------------------------

    def _job_of(self, now: float, new: NewSegment) -> Job:
        job = self.jobs.get(new.job)
        if job is None:
            job = self.jobs[new.job] = Job(id=new.job, created=now, parent=new.parent, kind=new.kind)
        if new.priority is not None and new.priority != job.priority:
            self.set_priority(now, job.id, new.priority)
        return job

    def _presume_over(self, job: Job) -> None:
        if not job.presumed_over:
            job.presumed_over = True
            self._gone.pop(job.id, None)
            self._over.add(job.id)
            self.predictor.job_ended(job)

    def _back_from_tool(self, now: float, job: Job, new: NewSegment) -> None:
        seconds = now - job.since
        job.tool = new.tool or job.tool
        job.tools[job.tool] += 1
        job.tool_s += seconds
        self.predictor.wait_ended(job, seconds, new.prompt_tokens - job.context)

    def _leave_slot(self, now: float, segment: Segment, job: Job) -> None:
        del self.running[segment.id]
        job.served += now - segment.since

    def _enqueue(self, now: float, segment: Segment) -> None:
        job = self.jobs[segment.job]
        key = self.policy.key(segment, job, now, self._at)
        limit = self.policy.overdue_s(segment, job, self._at)
        self.queue.put(segment.id, key, segment.arrived, now + limit - segment.waited_at(now))

        self._backlog -= self._work.get(segment.id, 0.0)
        self._work[segment.id] = work = work_s(segment, self._at)
        self._backlog += work

    def _dequeue(self, segment_id: int) -> None:
        self.queue.remove(segment_id)
        self._backlog -= self._work.pop(segment_id)
        if not self._work:
            self._backlog = 0.0  # what rounding left over

    def _requeue(self, now: float, job: Job) -> None:
        for segment_id in job.active:
            if self.segments[segment_id].state is SegmentState.WAITING:
                self._enqueue(now, self.segments[segment_id])

    def _renew_keys(self, now: float) -> None:
        for segment in self.segments.values():
            if segment.state is SegmentState.WAITING:
                self._enqueue(now, segment)

    def _observe(self, now: float, at: Conditions) -> None:
        if _differs(at, self._at):
            self._at = at
            self._renew_keys(now)
        while self._sunk:
            self._requeue(now, self._sunk.pop())
        while self._gone and now - self._gone[oldest := next(iter(self._gone))] >= _SILENT_S:
            self._presume_over(self.jobs[oldest])
        if self.queue and self.policy.last_level:
            level, ratio = self.policy.last_level, self.policy.aging_score
            for segment_id in self.queue.reaching(level, ratio, now):
                job = self.jobs[self.segments[segment_id].job]
                job.level = 0
                self._requeue(now, job)

    def _decide(self, segment: Segment, now: float) -> Decision:
        job = self.jobs[segment.job]
        job.reason = self.policy.reason(segment, job, now, self._at)
        return Decision(segment.id, job.reason)

    def _place(self, now: float, segment: Segment) -> tuple[bool, int, float, float, int]:
        key = self.policy.key(segment, self.jobs[segment.job], now, self._at)
        return (not segment.urgent, key.level, -key.score(now), segment.arrived, segment.id)

    def _prefill_order(self, now: float, segments: Sequence[Segment]) -> list[int]:
        """Those that decode, in any order, then those that prefill, by rank."""
        decoding: list[Segment] = []
        filling: list[Segment] = []
        for segment in segments:
            (decoding if segment.computed and segment.uncached == 1 else filling).append(segment)
        if len(filling) > 1:
            filling.sort(key=lambda s: self._place(now, s))
        return [s.id for s in decoding] + [s.id for s in filling]

    def _fitting(self, ready: Sequence[Segment], room: int | None, *, alone: bool) -> list[Segment]:
        # The first that does not fit blocks those behind it: letting small ones pass would starve it.
        chosen: list[Segment] = []
        for segment in ready:
            if room is not None:
                # Beside others it must be able to come to its end, or they would push each other out.
                growth = 1 if alone else int(segment.remaining_output)
                alone = False
                room -= segment.context + growth
                if room < 0:
                    break
            chosen.append(segment)
        return chosen

    def _victim(self, now: float, candidate: Segment) -> list[Segment]:
        key = self.queue.key(candidate.id)
        quantum = self.settings.min_quantum_tokens
        ranked = sorted(
            (s for s in self.running.values() if s.quantum >= quantum and not s.urgent),
            key=lambda s: self._place(now, s),
            reverse=True,
        )
        # Who waits decides what is cheap, and a swap changes who waits: two of one level could swap for ever.
        gave_way = candidate.preemptions > 0 and candidate.since >= self._arrived
        for victim in ranked:
            theirs = self.policy.key(victim, self.jobs[victim.job], now, self._at)
            if gave_way and theirs.level <= key.level:
                continue
            if self.policy.may_preempt(key, theirs, now):
                return [victim]
        return []


def _differs(first: Conditions, second: Conditions) -> bool:
    """Whether predictions made under one would be wrong under the other."""

    def far(a: float, b: float) -> bool:
        return max(a, b) > _DRIFT * min(a, b)

    one, two = first.speeds, second.speeds
    return (
        far(first.width, second.width)
        or max(1.0, first.backlog_s, second.backlog_s) > 2 * max(1.0, min(first.backlog_s, second.backlog_s))
        or far(one.decode_step(1, 1000), two.decode_step(1, 1000))
        or far(one.prefill(1000, 0), two.prefill(1000, 0))
    )
