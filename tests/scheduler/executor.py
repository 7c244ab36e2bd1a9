"""Executes plans as the engine does, in simulated time, and checks each of them."""

from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from astraea_local.scheduler.job import Segment, SegmentState
from astraea_local.scheduler.predictor import Speeds, remaining_output
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View

_EPSILON_S = 1e-6


@dataclass
class Executor:
    """One server without a model; `pool` is the number of cells of a unified layout."""

    scheduler: Scheduler
    speeds: Speeds = field(default_factory=Speeds)
    pool: int | None = None
    keeps_kv: bool = True
    """Whether a preempted segment finds its KV again."""
    prefill_tokens: int = 64
    """Most prompt tokens of a step."""
    now: float = 0.0
    outputs: dict[int, int] = field(default_factory=dict)
    """Tokens after which each segment ends; the scheduler does not know."""
    computed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Work done for each job."""
    waits: dict[int, float] = field(default_factory=dict)
    """Queue time of each segment so far."""
    finished: list[int] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    """First admissions, in order."""
    _next: int = 1

    def submit(
        self,
        job: str,
        prompt: int,
        output: int,
        *,
        max_output: int | None = None,
        cached: int = 0,
        priority: int | None = None,
    ) -> int:
        number = self._next
        self._next += 1
        self.outputs[number] = output
        self.waits[number] = 0.0
        new = NewSegment(number, job, prompt, max_output or output, cached=cached, priority=priority)
        self.scheduler.submit(self.now, new)
        return number

    def segments(self, state: SegmentState) -> list[Segment]:
        return [s for s in self.scheduler.segments.values() if s.state is state]

    @property
    def running(self) -> list[Segment]:
        return self.segments(SegmentState.RUNNING)

    @property
    def waiting(self) -> list[Segment]:
        return self.segments(SegmentState.WAITING)

    def step(self, deferred: frozenset[int] = frozenset()) -> Plan:
        """Plans, executes the plan, computes one batch and lets time pass."""
        room = None if self.pool is None else self.pool - sum(s.context for s in self.running)
        plan = self.scheduler.plan(self.now, View(self.speeds, room, deferred))
        self._check(plan, room, deferred)
        for decision in plan.preempt:
            self._stop(decision.segment)
        for decision in plan.admit:
            segment = self.scheduler.segments[decision.segment]
            self.scheduler.started(self.now, segment.id, min(segment.cached, segment.context - 1))
            if segment.id not in self.admitted:
                self.admitted.append(segment.id)
        self._compute(plan)
        self._check_waits()
        return plan

    def cancel(self, number: int) -> None:
        """Ends a segment, whatever it is doing."""
        job = self.scheduler.jobs[self.scheduler.segments[number].job]
        before = job.waited
        ended = self.scheduler.finish(self.now, number)
        assert job.waited - before == pytest.approx(ended.waited_at(self.now), abs=_EPSILON_S)
        self.finished.append(number)

    def _compute(self, plan: Plan) -> None:
        budget = self.prefill_tokens
        prefilled = decoding = tokens = 0
        for number in plan.order:
            if number not in self.scheduler.segments:
                continue
            segment = self.scheduler.segments[number]
            missing = segment.uncached
            work = 1 if missing == 1 else min(missing, budget)
            if work == 0 or not self._has_cells(segment, work):
                continue
            if missing == 1:
                decoding, tokens = decoding + 1, tokens + segment.context
            else:
                budget, prefilled = budget - work, prefilled + work
            self.scheduler.advance(number, computed=work, output=int(work == missing))
            self.computed[segment.job] += work
        seconds = prefilled / self.speeds.prefill_tokens_s
        self.now += seconds + (self.speeds.decode_step(decoding, tokens) if decoding else 0.0)
        for number in plan.order:
            if number in self.scheduler.segments:
                segment = self.scheduler.segments[number]
                if segment.output >= min(self.outputs[number], segment.max_output):
                    self.cancel(number)

    def _has_cells(self, segment: Segment, work: int) -> bool:
        """Gives up others, in the policy's order, while the pool is full."""
        while self.pool is not None and sum(s.computed for s in self.running) + work > self.pool:
            victim = self.scheduler.last(self.now, self.speeds)
            assert victim is not None
            self._stop(victim.id)
            if victim is segment:
                return False
        return segment.state is SegmentState.RUNNING

    def _stop(self, number: int) -> None:
        kept = self.scheduler.segments[number].computed if self.keeps_kv else 0
        self.scheduler.stopped(self.now, number, kept)

    def _check_waits(self) -> None:
        for segment in self.scheduler.segments.values():
            waited = segment.waited_at(self.now)
            assert waited >= self.waits[segment.id] - _EPSILON_S
            self.waits[segment.id] = waited

    def _check(self, plan: Plan, room: int | None, deferred: frozenset[int]) -> None:
        segments = self.scheduler.segments
        running, waiting = {s.id for s in self.running}, {s.id for s in self.waiting}
        admitted = [d.segment for d in plan.admit]
        preempted = [d.segment for d in plan.preempt]
        assert set(preempted) <= running
        assert set(admitted) <= waiting - deferred
        assert len(plan.order) == len(set(plan.order)) <= self.scheduler.slots
        assert set(plan.order) == (running - set(preempted)) | set(admitted)
        assert all(d.reason for d in (*plan.admit, *plan.preempt))
        if waiting - deferred:
            assert plan.order, "segments wait and nothing runs"
        if room is not None and admitted:
            alone = running == set(preempted)
            room += sum(segments[i].context for i in preempted)
            for index, number in enumerate(admitted):
                growth = 1 if alone and index == 0 else int(remaining_output(segments[number]))
                room -= segments[number].context + growth
            assert room >= 0
