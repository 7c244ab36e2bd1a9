"""Discrete-event simulation of an engine in virtual time, with the real Scheduler and the real policies.

A step costs what the machine's speeds say; where nothing but decoding happens, many steps are taken at
once, up to the next event. What the real engine does between steps (planning at events and every few steps,
batches of decodes first and then prefill in policy order, KV moved when its place is needed) is done here
in the same order.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from astraea_local.bench.machine import Machine
from astraea_local.bench.oracle import Truth
from astraea_local.bench.sim_kv import KvStats, SimKv, State
from astraea_local.bench.workloads import SimJob
from astraea_local.scheduler.batching import even_chunk, prefill_budget
from astraea_local.scheduler.job import Segment
from astraea_local.scheduler.retention import Retention
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View

# As the engine: a preemptive policy looks again after so many steps, even when nothing happened.
_REPLAN_STEPS = 8
# What clients ask for that set no limit of their own.
_MAX_OUTPUT = 4096


@dataclass(slots=True)
class JobResult:
    """One finished job; seconds."""

    id: str
    kind: str
    arrival_s: float
    jct_s: float
    tool_s: float
    queued_s: float
    segments: int
    switches: int
    """Preemptions of its segments."""


@dataclass(slots=True)
class SimResult:
    """A whole simulation."""

    jobs: list[JobResult]
    makespan_s: float
    busy_s: float
    """Time with a step running or KV moving."""
    prefilled: int
    recomputed: int
    """Prefilled tokens that had been computed before."""
    decoded: int
    plans: int
    kv: KvStats


@dataclass(slots=True)
class _Live:
    """A job in the simulation."""

    truth: Truth
    state: State
    context: int = 0
    """Tokens of its conversation so far."""
    computed: int = 0
    """The longest its KV was when it last lost its slot."""
    segment: int = 0
    output_tokens: int = 0
    """True length of the present segment's output."""
    queued_s: float = 0.0
    tool_s: float = 0.0
    switches: int = 0


@dataclass(slots=True)
class Simulation:
    """One run of a workload; `run` may be called once."""

    machine: Machine
    scheduler: Scheduler
    retention: Retention
    truths: dict[str, Truth] = field(default_factory=dict)
    """Filled while it runs; an oracle reads it."""
    exact_limits: bool = False
    """Whether clients ask for just as many tokens as they get, as a replay with fixed lengths does."""

    now: float = 0.0
    _kv: SimKv = field(init=False)
    _live: dict[str, _Live] = field(default_factory=dict)
    _by_segment: dict[int, _Live] = field(default_factory=dict)
    _events: list[tuple[float, int, SimJob | None, str]] = field(default_factory=list)
    _kinds: set[str] = field(default_factory=set)
    _order: list[Segment] = field(default_factory=list)
    _ids: int = 0
    _replan: bool = True
    _since_plan: int = 0
    _waiting_tokens: int = 0
    _result: SimResult = field(init=False)

    def __post_init__(self) -> None:
        self._kv = SimKv(self.machine, self.retention, self._waiting, self._on_loss)
        self._result = SimResult([], 0.0, 0.0, 0, 0, 0, 0, self._kv.stats)

    def run(self, jobs: Sequence[SimJob], on_progress: Callable[[int], None] | None = None) -> SimResult:
        """Simulates all jobs to their end; `on_progress` gets the number of finished ones."""
        for job in jobs:
            self._push(job.arrival_s, job, job.id)
        heapq.heapify(self._events)
        reported = 0
        while self._events or self.scheduler.segments:
            self._deliver()
            if not self.scheduler.segments:
                self.now = max(self.now, min(self._events[0][0], self._kv.next_ask))
                continue
            if self._replan or (
                self.scheduler.policy.preempts and self._since_plan >= _REPLAN_STEPS and self.scheduler.queue
            ):
                self._execute(self._plan())
            self._step()
            if on_progress is not None and len(self._result.jobs) >= reported + 100:
                reported = len(self._result.jobs)
                on_progress(reported)
        self._result.makespan_s = self.now
        return self._result

    # -- events ------------------------------------------------------------------------------------

    def _push(self, at: float, job: SimJob | None, name: str) -> None:
        self._ids += 1
        heapq.heappush(self._events, (at, self._ids, job, name))

    def _deliver(self) -> None:
        while self._events and self._events[0][0] <= self.now:
            at, _number, job, name = heapq.heappop(self._events)
            if job is not None:
                truth = self.truths[name] = Truth(job)
                self._live[name] = _Live(truth, State(name, at))
            self._submit(self._live[name])
        self._pass(self._kv.ask(self.now))

    def _waiting(self) -> tuple[int, int]:
        return len(self.scheduler.queue), self._waiting_tokens

    def _submit(self, live: _Live) -> None:
        job, number = live.truth.job, live.truth.call
        call = job.calls[number]
        live.context += call.new_tokens
        live.output_tokens = call.output_tokens
        live.state.wait = None
        self._ids += 1
        live.segment = self._ids
        self._by_segment[live.segment] = live
        self.scheduler.submit(
            self.now,
            NewSegment(
                id=live.segment,
                job=job.id,
                prompt_tokens=live.context,
                max_output=call.output_tokens if self.exact_limits else _MAX_OUTPUT,
                cached=self._cached(live, live.context),
                restore_s=self._restore_s(live),
                kind=job.kind,
                tool=job.calls[number - 1].tool if number else "",
            ),
        )
        self._waiting_tokens += live.context
        self._replan = True

    def _cached(self, live: _Live, context: int) -> int:
        held = live.state.held
        job = live.truth.job
        if self.machine.shares and self.retention.shares and job.kind in self._kinds:
            held = max(held, job.shared_tokens)
        return min(held, context - 1)

    def _restore_s(self, live: _Live) -> float:
        return self.machine.speeds.restore(live.state.parked) if not live.state.resident else 0.0

    def _on_loss(self, state: State) -> None:
        live = self._live[state.job]
        segment = self.scheduler.segments.get(live.segment)
        if segment is not None:
            cached = self._cached(live, segment.context)
            self.scheduler.set_cached(self.now, live.segment, cached, self._restore_s(live))

    # -- one step ----------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        self._result.plans += 1
        self._replan = False
        self._since_plan = 0
        taken = sum(s.context for s in self.scheduler.running.values())
        room = max(0, self.machine.cells - taken)
        return self.scheduler.plan(self.now, View(self.machine.speeds, room))

    def _execute(self, plan: Plan) -> None:
        for decision in plan.preempt:
            self._preempt(decision.segment)
        for decision in plan.admit:
            live = self._by_segment[decision.segment]
            tokens = self._cached(live, self.scheduler.segments[decision.segment].context)
            self._pass(self._kv.occupy(live.state, tokens, self.now))
            self._waiting_tokens -= self.scheduler.segments[decision.segment].context
            self.scheduler.started(self.now, decision.segment, tokens)
        self._order = [self.scheduler.running[i] for i in plan.order if i in self.scheduler.running]

    def _preempt(self, number: int) -> None:
        live = self._by_segment[number]
        self._pass(self._kv.release(live.state, self.now, None, 0.0))
        segment = self.scheduler.running[number]
        live.computed = max(live.computed, segment.computed)
        live.switches += 1
        self._waiting_tokens += segment.context
        cached = self._cached(live, segment.context)
        self.scheduler.stopped(self.now, number, cached)
        self.scheduler.set_cached(self.now, number, cached, self._restore_s(live))
        self._replan = True
        self._order = [s for s in self._order if s is not segment]

    def _step(self) -> None:
        speeds = self.machine.speeds
        decoding, filling, span = self._phases()
        chunks = self._chunks(filling, len(decoding), span) if filling else []
        needed = len(decoding) + sum(tokens for _segment, tokens in chunks)
        if not needed:
            # Nothing runs, and the first of those that wait does not fit into the empty machine either.
            raise self._too_small()
        if not self._has_room(needed):
            return
        if chunks:
            seconds = speeds.decode_step(len(decoding), span) if decoding else speeds.prefill_base_s
            seconds += self._kv.tax_s
            for segment, tokens in chunks:
                seconds += speeds.prefill(tokens, segment.computed) - speeds.prefill_base_s
            steps = 1
        else:
            steps, seconds = self._many(decoding, span)
        self._since_plan += steps
        self._pass(seconds)
        self._decoded(decoding, steps)
        for segment, tokens in chunks:
            self._fill(segment, tokens)
        self._finish_ended()

    def _phases(self) -> tuple[list[Segment], list[Segment], int]:
        """Running segments that decode, those that prefill, and the context of the first."""
        decoding: list[Segment] = []
        filling: list[Segment] = []
        span = 0
        for segment in self._order:
            context = segment.context
            if segment.computed and context - segment.computed == 1:
                decoding.append(segment)
                span += context
            else:
                filling.append(segment)
        return decoding, filling, span

    def _chunks(self, filling: Sequence[Segment], decoding: int, span: int) -> list[tuple[Segment, int]]:
        room = self.machine.batch - decoding
        if decoding or self.scheduler.queue:
            budget = prefill_budget(
                self.machine.speeds,
                self.machine.max_step_s,
                decoding=decoding,
                tokens=span,
                past=filling[0].computed,
            )
            room = min(room, budget)
        chunks = []
        for segment in filling:
            if room <= 0:
                break
            tokens = even_chunk(segment.context - segment.computed, room)
            room -= tokens
            chunks.append((segment, tokens))
        return chunks

    def _many(self, decoding: Sequence[Segment], span: int) -> tuple[int, float]:
        """How many decode steps pass until something can happen, and their seconds."""
        speeds, width = self.machine.speeds, len(decoding)
        steps = min([self._by_segment[s.id].output_tokens - s.output for s in decoding])
        if self.scheduler.policy.preempts and self.scheduler.queue:
            steps = min(steps, max(1, _REPLAN_STEPS - self._since_plan))
        first = speeds.decode_step(width, span) + self._kv.tax_s
        until = min(self._events[0][0] if self._events else math.inf, self._kv.next_ask) - self.now
        if until < math.inf:
            steps = min(steps, max(1, int(until / first) + 1))
        if self.machine.cells - self._kv.used < steps * width:
            steps = 1
        growth = speeds.step_token_s * width * steps * (steps - 1) / 2
        return steps, steps * first + growth

    def _has_room(self, tokens: int) -> bool:
        fits, took = self._kv.room_for(tokens, self.now)
        self._pass(took)
        if fits:
            return True
        # As the engine: the running segment that ranks last gives way; alone it could not be helped.
        victim = self.scheduler.last(self.now)
        if victim is None or len(self.scheduler.running) == 1:
            raise self._too_small()
        self._preempt(victim.id)
        return False

    def _too_small(self) -> ValueError:
        return ValueError(
            f"a job needs more than the machine's {self.machine.cells} cells: "
            "give the machine more, or the workload a smaller context limit"
        )

    def _decoded(self, segments: Sequence[Segment], steps: int) -> None:
        advance, grow, by_segment = self.scheduler.advance, self._kv.grow, self._by_segment
        for segment in segments:
            advance(segment.id, computed=steps, output=steps)
            grow(by_segment[segment.id].state, steps)
        self._result.decoded += steps * len(segments)

    def _fill(self, segment: Segment, tokens: int) -> None:
        live = self._by_segment[segment.id]
        again = max(0, min(live.computed, segment.computed + tokens) - segment.computed)
        self._result.prefilled += tokens
        self._result.recomputed += again
        done = segment.computed + tokens == segment.context
        self.scheduler.advance(segment.id, computed=tokens, output=int(done))
        self._kv.grow(live.state, tokens)
        self._result.decoded += done

    def _finish_ended(self) -> None:
        by_segment = self._by_segment
        ended = [s for s in self._order if s.output >= by_segment[s.id].output_tokens]
        for segment in ended:
            self._order.remove(segment)
            self._end(segment)

    def _end(self, segment: Segment) -> None:
        live = self._by_segment.pop(segment.id)
        job, number = live.truth.job, live.truth.call
        live.context = segment.context
        live.computed = max(live.computed, segment.computed)
        live.queued_s += segment.waited_at(self.now)
        self._kinds.add(job.kind)
        self.scheduler.finish(self.now, segment.id)
        self._replan = True
        if number + 1 == len(job.calls):
            self._done(live)
            return
        call = job.calls[number]
        record = self.scheduler.jobs[job.id]
        self.scheduler.calls_tool(job.id, call.tool)
        wait = self.scheduler.predictor.wait(record)
        live.truth.call += 1
        live.tool_s += call.tool_s
        back = self.now + call.tool_s
        self._pass(self._kv.release(live.state, self.now, wait, record.kept_until))
        self._push(back, None, job.id)

    def _done(self, live: _Live) -> None:
        job = live.truth.job
        self._kv.running -= 1
        self._kv.end(live.state)
        if self.machine.signals_end:
            self.scheduler.end_job(job.id)
        self._result.jobs.append(
            JobResult(
                job.id,
                job.kind,
                job.arrival_s,
                self.now - job.arrival_s,
                live.tool_s,
                live.queued_s,
                len(job.calls),
                live.switches,
            )
        )
        del self._live[job.id], self.truths[job.id]

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self._result.busy_s += seconds
