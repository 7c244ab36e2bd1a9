"""EngineCore: the step loop. Executes the scheduler's plan, one llama.cpp batch per step.

A segment is a list of tokens of which a leading part is in KV. Whatever is missing is computed: many
tokens (prefill) or one (decode), with the same code. Preempting a segment is taking its sequence away;
resuming it is placing its tokens again, wherever their KV is by then.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.calibration import Layout
from astraea_local.engine.batcher import Batcher, Output, load_of
from astraea_local.engine.binding import (
    Batch,
    BindingError,
    Candidates,
    Context,
    Guides,
    Model,
    ModelClass,
    Vocab,
)
from astraea_local.engine.completion import Completions
from astraea_local.engine.facts import EngineFacts
from astraea_local.engine.kv.store import Parking
from astraea_local.engine.kv.tiers import Tiers, ram_only
from astraea_local.engine.kv.transfer import Form, form_of
from astraea_local.engine.messages import Cancel, EndJob, Failed, Finished, Paused, Started, Submit, ToFront
from astraea_local.engine.placement import Delay
from astraea_local.engine.residency import Residency
from astraea_local.engine.run import Back, Run
from astraea_local.engine.slots import SequenceTable, common_prefix
from astraea_local.engine.speed import SpeedMeter, measure, prefill
from astraea_local.engine.stall import Stall
from astraea_local.engine.text import PieceTable
from astraea_local.engine.timeline import Timelines
from astraea_local.frame import Event, EventLevel, PressureLevel, Totals
from astraea_local.history import SegmentRecord
from astraea_local.profile import PolicyName, Profile
from astraea_local.scheduler import retention
from astraea_local.scheduler.job import Job
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View
from astraea_local.scheduler.speeds import Speeds

# A preemptive policy looks again after so many steps, even when nothing happened.
_REPLAN_STEPS = 8
# A segment waits for another's prefill when that will give it so many more tokens than it has.
_WORTH_WAITING = 64
# While nothing runs, moving KV holds up nobody but who comes next.
_IDLE_STALL_S = 0.02
# What a step that can only wait for the disk sleeps.
_NAP_S = 0.001

OpenTiers = Callable[[Form], Tiers]


class EngineFault(Exception):
    """llama.cpp failed in a way that leaves its memory unknown; the process must be restarted."""


@dataclass(slots=True)
class StepTime:
    """Where the time of the last steps went, seconds."""

    steps: int = 0
    total: float = 0.0
    decode: float = 0.0
    sampling: float = 0.0
    kv_moves: float = 0.0


class EngineCore:
    """Owns the context; every method is called from one thread."""

    def __init__(
        self,
        model: Model,
        context: Context,
        profile: Profile,
        *,
        vocab: Vocab | None = None,
        speeds: Speeds | None = None,
        predictor: Predictor | None = None,
        record: Callable[[SegmentRecord], None] | None = None,
        open_tiers: OpenTiers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `speeds` (a calibration's) they are measured briefly; `record` gets each ended segment.

        `vocab` is what samplers hold on to: given one that outlives the model, the model can be unloaded
        for a while. Without `open_tiers` states are parked in host memory only.
        """
        self.profile = profile
        self.offloaded = model.offloaded
        self.model_class = model.model_class
        self.model_name = model.path.stem
        self.quantization, self.parameters = model.quantization, model.n_params
        self.clock = clock
        self.scheduler = Scheduler(profile.scheduler, profile.context.slots, predictor=predictor)
        self.totals = Totals()
        self.step_time = StepTime()
        self.timelines = Timelines(self.scheduler, lambda: self.meter.speeds)
        self.completions = Completions(profile.context.slots)
        self.events: deque[Event] = deque(maxlen=200)
        self._last_event = 0
        self.runs: dict[int, Run] = {}
        self.levels: dict[str, PressureLevel] = {}
        """Pressure on `cells`, `vram`, `ram` and `disk`."""
        self.admitting = True
        """False: nothing new is admitted, on request; what runs goes on."""
        self._vocab = vocab or model.vocab
        self._batch = Batch(profile.context.batch)
        self._candidates = Candidates(model.vocab.n_tokens)
        self._pieces = PieceTable(self._vocab)
        self.guides = Guides(self._vocab)
        self.meter = SpeedMeter(speeds or measure(context, self._batch, profile.context.slots))
        form = _form(context, self._batch) if self.model_class is ModelClass.FULL else Form(by_rows=False)
        facts = EngineFacts(self.scheduler, self.runs, lambda: self.meter.speeds, clock, self.levels)
        self.residency = facts.residency = Residency(
            profile.retention,
            retention.make(
                profile.retention.policy, profile.retention, watermark=profile.scheduler.paper_watermark
            ),
            facts,
            model_class=self.model_class,
            by_rows=form.by_rows,
            tiers=ram_only(profile) if open_tiers is None else open_tiers(form),
            note=lambda text: self.note("warning", text),
            clock=clock,
        )
        self._facts = facts
        self._batcher = Batcher(self._batch, profile.scheduler.max_step_ms / 1000, self._make_room)
        self._record = record
        self._run_id = uuid.uuid4().hex
        self._out: list[ToFront] = []
        self._order: list[Run] = []
        self._replan = True
        self._since_plan = 0
        self._recheck_cached = False
        self._stall = Stall(None)
        self._trained_for = model.n_ctx_train
        self.context: Context | None = None
        self.attach(context)

    def close(self) -> None:
        """Frees what the core made; context and model belong to the caller."""
        for run in self.runs.values():
            run.close()
        self._batch.close()

    # -- the context -------------------------------------------------------------------------------

    def attach(self, context: Context) -> None:
        """Goes on in this context, which is empty."""
        self.context, self._params = context, context.params
        self.job_limit = min(context.n_ctx_seq, self._trained_for)
        self.residency.attach(context)
        self._replan = self._recheck_cached = True

    def detach(self) -> None:
        """Pauses what runs and parks all KV, so that the context may be freed."""
        for run in [r for r in self.runs.values() if r.sequence is not None]:
            self._preempt(run, "the context is made anew")
        for run in self.runs.values():
            self.residency.placer.give_up(run.request.segment)
        self._order.clear()
        self.residency.detach()
        self.context = None

    @property
    def table(self) -> SequenceTable:
        """The sequences of the context."""
        return self.residency.table

    @property
    def stalled_s(self) -> float:
        """Seconds that moving KV took of the last step."""
        return self._stall.spent

    @property
    def layout(self) -> Layout:
        """Of the present context, or of the last one."""
        return "unified" if self._params.unified else "per_slot"

    @property
    def cells(self) -> int:
        """KV cells of the present context, or of the last one."""
        return self._params.n_ctx

    # -- events from the front ---------------------------------------------------------------------

    def submit(self, request: Submit) -> None:
        """Queues a segment; one that can never run is answered with `Failed`."""
        now = self.clock()
        if len(request.prompt) >= self.job_limit:
            text = (
                f"the prompt has {len(request.prompt)} tokens, a job's context holds {self.job_limit}: "
                "shorten it, or serve with a larger context.size or fewer context.slots"
            )
            self._fail(request.segment, text, "context_length_exceeded")
            return
        try:
            run = Run(request, self._vocab, self.guides, self._pieces, now)
        except BindingError as error:
            self._fail(request.segment, str(error), "invalid_grammar")
            return
        job = self.scheduler.jobs.get(request.job)
        if job is not None:
            run.back = _follows(job, len(request.prompt), now)
        self.runs[request.segment] = run
        self.residency.returned(request.job)
        cached, restore_s = self._known(run)
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
        self._replan = True

    def cancel(self, message: Cancel) -> None:
        """Ends a segment whose client is gone; what it computed stays reusable."""
        run = self.runs.get(message.segment)
        if run is not None:
            self.totals.segments_cancelled += 1
            self._end(run, "cancelled")

    def end_job(self, message: EndJob) -> None:
        """Marks a job as over."""
        self.scheduler.end_job(message.job)

    def tool_called(self, job: str, tool: str) -> None:
        """The job's last answer called this tool: its wait can be predicted better now."""
        self.scheduler.calls_tool(job, tool)
        self.timelines.calls_tool(job)
        found = self.scheduler.jobs.get(job)
        if found is not None and not found.active:
            self.residency.expect(job, self.scheduler.predictor.wait(found))

    def set_policy(self, name: PolicyName) -> None:
        """Goes on with another policy; what runs goes on running."""
        if name != self.scheduler.policy.name:
            self.scheduler.set_policy(self.clock(), name)
            self.note("info", f"scheduling by {name}: {self.scheduler.policy.summary}")
            self._replan = True

    def set_admitting(self, on: bool) -> None:
        """Admits nothing new while off; what runs goes on, what is submitted waits."""
        self.admitting = on
        self._replan = True

    def set_priority(self, job: str, priority: int) -> None:
        """Moves a known job up or down by that many queues."""
        self.scheduler.set_priority(self.clock(), job, priority)
        self._replan = True

    def cancel_job(self, job: str) -> int:
        """Ends the requests of a known job, queued ones included; returns how many."""
        segments = list(self.scheduler.jobs[job].active)
        for segment in segments:
            self.cancel(Cancel(segment))
        return len(segments)

    def kv_changed(self) -> None:
        """KV was moved or dropped on request: what waiting segments can reuse is looked for again."""
        self._recheck_cached = True

    def pressure_changed(self, levels: dict[str, PressureLevel]) -> None:
        """Memory is scarcer or less so: decisions about idle KV are reconsidered."""
        for name, level in levels.items():
            if level in ("high", "critical") and self.levels.get(name) not in ("high", "critical"):
                self.note("warning", f"{name} is {level}")
        self.levels.clear()
        self.levels.update(levels)
        self.residency.ask_again()

    # -- the loop ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        # While nothing is admitted, those that wait have nothing to do.
        runs = self.runs if self.admitting or self._replan else self._order
        return bool(runs) and self.context is not None

    def take_messages(self) -> list[ToFront]:
        """What happened since the last call."""
        out, self._out = self._out, []
        return out

    def idle(self) -> bool:
        """What is due while nothing runs; True when more of it waits to be done."""
        self.residency.tick(Stall(_IDLE_STALL_S), busy=False)
        return self.residency.unfinished

    def step(self) -> None:
        """Plans when needed, computes one batch, samples. Raises `EngineFault`."""
        began = time.perf_counter()
        context = self.context
        assert context is not None
        self._stall = Stall(self.profile.kv.max_stall_ms / 1000 if self._order else None)
        self.residency.tick(self._stall, busy=True)
        self.residency.compact(self.step_time.steps, self._stall)
        self._since_plan += 1
        if self._replan or (self.scheduler.policy.preempts and self._since_plan >= _REPLAN_STEPS):
            self._execute(self._plan())
        waiting = len(self.runs) > len(self._order)
        outputs = self._batcher.fill(self._order, self.table, self.meter.speeds, others=waiting)
        self.step_time.kv_moves += self._stall.spent
        if not outputs:
            # Nobody decodes, and those that prefill found no cell left.
            if self._order:
                self._pool_is_full()
            elif self._replan:
                time.sleep(_NAP_S)
            return
        load = load_of(outputs)
        filled = time.perf_counter()
        code = context.decode(self._batch)
        context.synchronize()
        decoded = time.perf_counter()
        if code == 1:
            self._pool_is_full()
            return
        if code != 0:
            raise EngineFault(f"llama_decode returned {code}")
        sampled = self._take_outputs(context, outputs)
        self.meter.observe(
            decoded - filled,
            decoding=load.decoding,
            tokens=load.span,
            prefilled=load.prefilled,
            past=load.past,
        )
        self.totals.prefilled_tokens += load.prefilled
        self.totals.steps += 1
        time_ = self.step_time
        time_.steps += 1
        time_.total += time.perf_counter() - began
        time_.decode += decoded - filled
        time_.sampling += sampled

    def forget_old_jobs(self) -> None:
        """Drops jobs from which nothing came for the profile's `server.job_idle_s`."""
        self.completions.over(self.scheduler.forget(self.clock() - self.profile.server.job_idle_s))
        self.residency.pinned &= self.scheduler.jobs.keys()

    def note(self, level: EventLevel, text: str) -> None:
        """Adds a line to the event log."""
        self._last_event += 1
        self.events.append(Event(id=self._last_event, at=time.time(), level=level, text=text))

    def note_job(self, job_id: str, text: str) -> None:
        """The same about one job, which keeps it to be seen later."""
        self.note("warning", f"{job_id}: {text}")
        if (job := self.scheduler.jobs.get(job_id)) is not None:
            job.note = text

    # -- planning ----------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        now = self.clock()
        waiting = [r for r in self.runs.values() if r.sequence is None]
        if self._recheck_cached:
            self._recheck_cached = False
            for run in waiting:
                self.scheduler.set_cached(now, run.request.segment, *self._known(run))
        deferred = frozenset(
            r.request.segment for r in waiting if not self.admitting or self._prefix_is_coming(r)
        )
        # What the running ones have still to prefill is spoken for as well.
        taken = sum(len(r.context) for r in self.runs.values() if r.sequence is not None)
        room = max(0, self.table.cells_total - taken) if self.table.unified else None
        return self.scheduler.plan(now, View(self.meter.speeds, room, deferred))

    def _execute(self, plan: Plan) -> None:
        self._replan = False
        self._since_plan = 0
        for decision in plan.preempt:
            self._preempt(self.runs[decision.segment], decision.reason)
        for decision in plan.admit:
            run = self.runs[decision.segment]
            # An admission just made may have started the very prefix that this one needs.
            if self._prefix_is_coming(run) or not self._admit(run):
                self._replan = True
        self._order = [run for i in plan.order if (run := self.runs[i]).sequence is not None]

    def _admit(self, run: Run) -> bool:
        now = self.clock()
        segment, job = run.request.segment, run.request.job
        stats = self.residency.store.stats
        saved = (stats.park_bytes, stats.park_s)
        restored = (stats.restore_bytes, stats.restore_s)
        placed = self.residency.placer.place(segment, run.context.view(), job, now, self._stall)
        self.meter.observe_save(stats.park_bytes - saved[0], stats.park_s - saved[1])
        self.meter.observe_restore(stats.restore_bytes - restored[0], stats.restore_s - restored[1])
        if isinstance(placed, Delay):
            return False
        sequence, length = placed
        sequence.segment = segment
        run.sequence = sequence
        self.scheduler.started(now, segment, length)
        self.timelines.admitted(now, segment)
        if run.started_at is None:
            run.started_at = now
            run.cached = min(length, len(run.request.prompt))
            self.totals.cached_tokens += run.cached
            self._out.append(Started(segment, run.cached, now - run.submitted_at))
        self._recheck_cached = True
        return True

    def _preempt(self, run: Run, reason: str) -> None:
        assert run.sequence is not None
        now = self.clock()
        kept = len(run.sequence.tokens)
        self._release(run)
        self.scheduler.stopped(now, run.request.segment, kept)
        self.timelines.paused(now, run.request.segment, reason)
        self.totals.preemptions += 1
        self.note("info", f"{run.request.job} paused: {reason}")
        self._out.append(Paused(run.request.segment, reason))
        self._recheck_cached = True
        self._replan = True

    def _prefix_is_coming(self, run: Run) -> bool:
        known = self.scheduler.segments[run.request.segment].cached
        prompt = run.context.view()
        for other in self.runs.values():
            if other.sequence is None or other.decoding:
                continue
            shared = common_prefix(other.context.view(), prompt)
            if shared > len(other.sequence.tokens) and shared - known >= _WORTH_WAITING:
                return self.table.trimmable
        return False

    def _known(self, run: Run) -> tuple[int, float]:
        """Leading tokens of the run whose KV exists, and the seconds to bring it where it is needed."""
        if not self.residency.attached:
            return 0, 0.0
        placer = self.residency.placer
        source = placer.find(run.context.view(), run.request.job)
        return source.length, placer.restore_s(source)

    # -- one batch ---------------------------------------------------------------------------------

    def _make_room(self, cells: int) -> None:
        self.residency.placer.make_room(cells, self._stall)

    def _take_outputs(self, context: Context, outputs: list[Output]) -> float:
        """Records what was computed, samples where a context is complete; returns seconds of sampling."""
        now = self.clock()
        sampling = 0.0
        ended: list[tuple[Run, str]] = []
        for output in outputs:
            run, tokens = output.run, output.tokens
            assert run.sequence is not None
            self.table.append(run.sequence, tokens)
            before = run.output
            if len(run.sequence.tokens) == len(run.context):
                self._replan |= len(tokens) > 1
                began = time.perf_counter()
                reason = run.take(context.logits(output.index), self._candidates, self.job_limit, now)
                sampling += time.perf_counter() - began
                self.timelines.sampled(now, run.request.segment)
                if reason is not None:
                    ended.append((run, reason))
                elif (delta := run.delta()) is not None:
                    self._out.append(delta)
            self.scheduler.advance(run.request.segment, computed=len(tokens), output=run.output - before)
            self.totals.decoded_tokens += run.output - before
        for run, reason in ended:
            self.totals.segments_finished += 1
            self._end(run, reason)
        return sampling

    # -- ends --------------------------------------------------------------------------------------

    def _end(self, run: Run, reason: str) -> None:
        now = self.clock()
        finished = run.finished(reason, now)
        self._out.append(finished)
        if self._record is not None:
            self._record(self._as_record(run, finished, now))
        self._discard(run, now, reason)

    def _as_record(self, run: Run, finished: Finished, now: float) -> SegmentRecord:
        request, back = run.request, run.back
        return SegmentRecord(
            run=self._run_id,
            model=self.model_name,
            job=request.job,
            kind=request.kind,
            parent=request.parent,
            number=back.number,
            arrived=time.time() - (now - run.submitted_at),
            queued_s=finished.queued_s,
            prefill_s=finished.prefill_s,
            decode_s=finished.decode_s,
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            output_tokens=finished.output_tokens,
            max_output=request.max_output,
            new_tokens=back.new_tokens,
            preemptions=self.scheduler.segments[request.segment].preemptions,
            tool=request.tool,
            wait_s=back.wait_s,
            outcome=finished.reason,
        )

    def _fail(self, segment: int, message: str, code: str, *, retryable: bool = False) -> None:
        self.totals.segments_failed += 1
        self.note("error", message)
        self._out.append(Failed(segment, message, code, retryable))

    def _discard(self, run: Run, now: float, outcome: str) -> None:
        segment, job_id = run.request.segment, run.request.job
        mine = run.sequence
        if mine is not None:
            self._detach_run(run)
            # Only the latest context of a job is expected back; older branches may go first.
            for other in self.table.idle():
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
        self._replan = True
        self._recheck_cached = True

    def _release(self, run: Run) -> None:
        """The run lost its sequence and waits for another."""
        sequence = run.sequence
        assert sequence is not None
        self._detach_run(run)
        self.residency.released(sequence, None)

    def _detach_run(self, run: Run) -> None:
        assert run.sequence is not None
        run.sequence.segment = None
        run.sequence = None
        if run in self._order:
            self._order.remove(run)

    def _pool_is_full(self) -> None:
        """llama.cpp found no cells and changed nothing: park someone, or end the one that is too large."""
        now = self.clock()
        at_once = Stall(None)
        placer = self.residency.placer
        if placer.make_room(max(1, len(self._batch)), at_once):
            if self.table.unified:
                return
            raise EngineFault("no room in a sequence that should have some")
        running = [r for r in self.runs.values() if r.sequence is not None]
        if len(running) > 1:
            victim = self.scheduler.last(now)
            assert victim is not None
            run = self.runs[victim.id]
            sequence = run.sequence
            assert sequence is not None
            self._preempt(run, "the KV pool is full")
            if placer.park(sequence, at_once) is Parking.FAILED:
                self.note("warning", f"no room in RAM for {run.request.job}: its context will be recomputed")
            self.table.clear(sequence)
            return
        (run,) = running
        # Nobody fails for a pin, or for what is on its way back.
        placer.give_up_all()
        if placer.make_room(max(1, len(self._batch)), at_once, pinned=True):
            return
        if run.output:
            self._end(run, "length")
            return
        pool = self.table.cells_total
        text = f"the context of {len(run.context)} tokens does not fit the pool of {pool} cells"
        self._fail(run.request.segment, text, "context_length_exceeded")
        sequence = run.sequence
        self._discard(run, now, "failed")
        if sequence is not None:
            self.table.clear(sequence)


def _follows(job: Job, prompt_tokens: int, now: float) -> Back:
    if job.active or not job.segments:
        return Back(job.segments + len(job.active), None, prompt_tokens)
    return Back(job.segments, now - job.since, max(0, prompt_tokens - job.context))


def _form(context: Context, batch: Batch) -> Form:
    """How this context's states can be kept; leaves the context empty."""
    prefill(context, batch, 4)
    found = form_of(context, 0)
    context.clear()
    return found
