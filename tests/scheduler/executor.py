"""Executes plans as the engine does, in simulated time, and checks each of them."""

from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from astraea_local.scheduler.cost import Conditions
from astraea_local.scheduler.job import Segment, SegmentState
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View
from astraea_local.scheduler.speeds import Speeds

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
    received: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Work done for each segment."""
    waits: dict[int, float] = field(default_factory=dict)
    """Queue time of each segment so far."""
    finished: list[int] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    """First admissions, in order."""
    preempted: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """How often a plan took each segment's slot; full pools do not count."""
    plans: list[Plan] = field(default_factory=list)
    _took: set[tuple[int, int]] = field(default_factory=set)
    """Which segment took the slot of which since the last arrival."""
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
        kind: str = "",
        tool: str = "",
    ) -> int:
        number = self._next
        self._next += 1
        self.outputs[number] = output
        self.waits[number] = 0.0
        self._took.clear()
        new = NewSegment(
            number,
            job,
            prompt,
            max_output or output,
            cached=cached,
            priority=priority,
            kind=kind,
            tool=tool,
        )
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

    def step(self, deferred: frozenset[int] = frozenset(), *, admissions_fail: bool = False) -> Plan:
        """Plans, executes the plan, computes one batch and lets time pass."""
        room = None if self.pool is None else max(0, self.pool - sum(s.context for s in self.running))
        plan = self.scheduler.plan(self.now, View(self.speeds, room, deferred))
        self.plans.append(plan)
        self._check(plan, room, deferred)
        for decision in plan.preempt:
            self._stop(decision.segment)
        for decision in plan.admit:
            segment = self.scheduler.segments[decision.segment]
            if admissions_fail:
                continue
            self.scheduler.started(self.now, segment.id, min(segment.cached, segment.context - 1))
            if segment.id not in self.admitted:
                self.admitted.append(segment.id)
        self._compute(plan)
        self._check_waits()
        return plan

    def run(self) -> None:
        """Steps until nothing is left."""
        while self.scheduler.segments:
            self.step()

    def cancel(self, number: int) -> None:
        """Ends a segment, whatever it is doing."""
        job = self.scheduler.jobs[self.scheduler.segments[number].job]
        before = job.waited
        ended = self.scheduler.finish(self.now, number)
        assert job.waited - before == pytest.approx(ended.waited_at(self.now), abs=_EPSILON_S)
        assert ended.received == self.received[number]
        self.finished.append(number)

    def stop(self, number: int) -> None:
        """Takes the slot of a running segment, as the engine does when the pool is full."""
        kept = self.scheduler.segments[number].computed if self.keeps_kv else 0
        self.scheduler.stopped(self.now, number, kept)

    def level(self, segment: Segment) -> int:
        """The queue that the policy puts it in at this moment."""
        scheduler = self.scheduler
        at = Conditions(self.speeds)
        return scheduler.policy.key(segment, scheduler.jobs[segment.job], self.now, at).level

    def in_order(self) -> list[int]:
        """The waiting ones as they are explained: overdue by arrival, then by level and score."""

        def place(segment: Segment) -> tuple[bool, float, float, float, int]:
            if self.scheduler.queue.is_overdue(segment.id, self.now):
                return (False, 0.0, 0.0, segment.arrived, segment.id)
            shown = self.scheduler.explain(segment, self.now)
            return (True, shown.level, -shown.score, segment.arrived, segment.id)

        return [s.id for s in sorted(self.waiting, key=place)]

    def _compute(self, plan: Plan) -> None:
        budget = self.prefill_tokens
        prefilled = decoding = tokens = 0
        for number in plan.order:
            if number not in self.scheduler.running:
                continue
            segment = self.scheduler.running[number]
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
            self.received[number] += work
        seconds = self.speeds.prefill(prefilled, 0) if prefilled else 0.0
        self.now += seconds + (self.speeds.decode_step(decoding, tokens) if decoding else 0.0)
        for number in plan.order:
            if number in self.scheduler.running:
                segment = self.scheduler.running[number]
                if segment.output >= min(self.outputs[number], segment.max_output):
                    self.cancel(number)

    def _has_cells(self, segment: Segment, work: int) -> bool:
        """Gives up others, in the policy's order, while the pool is full."""
        while self.pool is not None and sum(s.computed for s in self.running) + work > self.pool:
            victim = self.scheduler.last(self.now)
            assert victim is not None
            self.stop(victim.id)
            if victim is segment:
                return False
        return segment.state is SegmentState.RUNNING

    def _stop(self, number: int) -> None:
        self.preempted[number] += 1
        quantum = self.scheduler.settings.min_quantum_tokens
        assert self.preempted[number] * quantum <= self.received[number], "preempted too often"
        self.stop(number)

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
        assert set(self.scheduler.running) == running
        assert set(preempted) <= running
        assert set(admitted) <= waiting - deferred
        assert len(plan.order) == len(set(plan.order)) <= self.scheduler.slots
        assert set(plan.order) == (running - set(preempted)) | set(admitted)
        assert all(d.reason for d in (*plan.admit, *plan.preempt))
        order = self.in_order()
        assert admitted == [i for i in order if i not in deferred][: len(admitted)]
        assert all(self.scheduler.explain(s, self.now).level == self.level(s) for s in self.waiting)
        self._check_no_slot_is_wasted(len(running), admitted, order, room, deferred)
        self._check_preemption(plan)
        if room is not None and admitted:
            alone = running == set(preempted)
            room += sum(segments[i].context for i in preempted)
            for index, number in enumerate(admitted):
                growth = 1 if alone and index == 0 else int(segments[number].remaining_output)
                room -= segments[number].context + growth
            assert room >= 0

    def _check_no_slot_is_wasted(
        self, running: int, admitted: list[int], order: list[int], room: int | None, deferred: frozenset[int]
    ) -> None:
        policy = self.scheduler.policy
        if policy.batches and running:
            assert not admitted, "a batch runs to its end"
            return
        if policy.first_level_only and order:
            first = self.level(self.scheduler.segments[order[0]])
            order = [i for i in order if self.level(self.scheduler.segments[i]) == first]
        ready = [i for i in order if i not in deferred]
        free = max(0, self.scheduler.width(self.now, self.speeds) - running)
        if room is None and free:
            assert len(admitted) == min(free, len(ready))
        elif ready and not running:
            assert admitted, "segments wait and nothing runs"

    def _check_preemption(self, plan: Plan) -> None:
        """Nobody takes a slot back without anything new, but from one that sank below it."""
        if not plan.preempt:
            return
        (given,), (taken,) = plan.preempt, plan.admit
        loser, winner = self.scheduler.segments[given.segment], self.scheduler.segments[taken.segment]
        if (loser.id, winner.id) in self._took:
            assert self.level(loser) > self.level(winner), "a slot was taken back"
        self._took.add((winner.id, loser.id))
