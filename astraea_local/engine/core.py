"""EngineCore: the step loop. Executes the scheduler's plan, one llama.cpp batch per step.

A segment is a list of tokens of which a leading part is in KV. Whatever is missing is computed: many
tokens (prefill) or one (decode), with the same code. Preempting a segment is taking its sequence away;
resuming it is placing its tokens again, wherever their KV is by then.
"""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.engine.binding import Batch, BindingError, Candidates, Context, Model, Tokens
from astraea_local.engine.completion import Completions
from astraea_local.engine.kvstore import RamStore, Snapshot
from astraea_local.engine.messages import Cancel, EndJob, Failed, Finished, Paused, Started, Submit, ToFront
from astraea_local.engine.placement import Placer
from astraea_local.engine.run import Back, Run
from astraea_local.engine.slots import Sequence, SequenceTable, common_prefix
from astraea_local.engine.speed import SpeedMeter, measure
from astraea_local.engine.text import PieceTable
from astraea_local.engine.timeline import Timelines
from astraea_local.frame import Event, EventLevel, Totals
from astraea_local.history import SegmentRecord
from astraea_local.profile import PolicyName, Profile
from astraea_local.scheduler.batching import even_chunk, prefill_budget
from astraea_local.scheduler.job import Job
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View
from astraea_local.scheduler.speeds import Speeds

_logger = logging.getLogger(__name__)

# A preemptive policy looks again after so many steps, even when nothing happened.
_REPLAN_STEPS = 8
# A segment waits for another's prefill when that will give it so many more tokens than it has.
_WORTH_WAITING = 64


class Refused(Exception):
    """What a user asked for is not possible as things are; the message says why."""


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
        speeds: Speeds | None = None,
        predictor: Predictor | None = None,
        record: Callable[[SegmentRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `speeds` (a calibration's) they are measured briefly; `record` gets each ended segment."""
        self.profile = profile
        self.model = model
        self.context = context
        self.clock = clock
        self.scheduler = Scheduler(profile.scheduler, profile.context.slots, predictor=predictor)
        self.table = SequenceTable(context, context.params.n_seq, model.model_class)
        self.store = RamStore(profile.retention.ram_mib << 20)
        self.placer = Placer(
            context,
            self.table,
            self.store,
            min_tokens=profile.retention.min_tokens,
            is_useful=self._is_useful,
            is_pinned=lambda job: job in self.pinned,
            note=lambda text: self.note("warning", text),
        )
        self.job_limit = min(context.n_ctx_seq, model.n_ctx_train)
        self.totals = Totals()
        self.step_time = StepTime()
        self.events: deque[Event] = deque(maxlen=200)
        self._last_event = 0
        self.runs: dict[int, Run] = {}
        self.timelines = Timelines(self.scheduler, lambda: self.meter.speeds)
        self.completions = Completions(profile.context.slots)
        self.scheduling_paused = False
        self.pinned: set[str] = set()
        """Jobs whose KV a user wants to stay in its slot."""
        self._batch = Batch(profile.context.batch)
        self._candidates = Candidates(model.vocab.n_tokens)
        self._pieces = PieceTable(model.vocab)
        self.meter = SpeedMeter(speeds or measure(context, self._batch, profile.context.slots))
        self._record = record
        self._run_id = uuid.uuid4().hex
        self._out: list[ToFront] = []
        self._order: list[Run] = []
        self._replan = True
        self._since_plan = 0
        self._recheck_cached = False

    def close(self) -> None:
        """Frees what the core made; context and model belong to the caller."""
        for run in self.runs.values():
            run.close()
        self._batch.close()

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
            run = Run(request, self.model.vocab, self._pieces, now)
        except BindingError as error:
            self._fail(request.segment, str(error), "invalid_grammar")
            return
        job = self.scheduler.jobs.get(request.job)
        if job is not None:
            run.back = _follows(job, len(request.prompt), now)
        self.runs[request.segment] = run
        source = self.placer.find(request.prompt, request.job)
        self.scheduler.submit(
            now,
            NewSegment(
                id=request.segment,
                job=request.job,
                prompt_tokens=len(request.prompt),
                max_output=request.max_output,
                cached=source.length,
                restore_s=self._restore_s(source.holder),
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

    def set_policy(self, name: PolicyName) -> None:
        """Goes on with another policy; what runs goes on running."""
        if name != self.scheduler.policy.name:
            self.scheduler.set_policy(self.clock(), name)
            self.note("info", f"scheduling by {name}: {self.scheduler.policy.summary}")
            self._replan = True

    # -- what a user asks for ----------------------------------------------------------------------

    def pause_scheduling(self, on: bool) -> None:
        """Admits nothing new while `on`; what runs goes on, what is submitted waits."""
        self.scheduling_paused = on
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

    def pin(self, job: str, on: bool) -> str:
        """Keeps the KV of a job in its slot, or no longer; returns what was done. Raises `Refused`."""
        if not on:
            self.pinned.discard(job)
            return "its KV may be moved again"
        if job not in self.pinned and len(self.pinned) + 1 >= len(self.table.sequences):
            raise Refused(f"{len(self.pinned)} jobs are pinned already: the last slot must stay free")
        self.pinned.add(job)
        return "its KV stays in its slot"

    def park_now(self, job: str) -> str:
        """Moves the idle KV of a job to RAM; returns what was done. Raises `Refused`."""
        tokens = 0
        for sequence in self._idle_of(job):
            if not self.placer.park(sequence, self.clock()):
                raise Refused(f"no room in RAM for its {len(sequence.tokens):,} tokens")
            tokens += len(sequence.tokens)
            self.table.clear(sequence)
        if not tokens:
            raise Refused("it has no KV in a slot")
        self._recheck_cached = True
        return f"parked {tokens:,} tokens to RAM"

    def drop_kv(self, job: str) -> str:
        """Forgets the idle and parked KV of a job; returns what was done. Raises `Refused`."""
        sequences = self._idle_of(job)
        snapshots = [s for s in self.store.snapshots if s.job == job]
        tokens = sum(len(s.tokens) for s in sequences) + sum(len(s.tokens) for s in snapshots)
        if not tokens:
            raise Refused("it has no KV")
        for sequence in sequences:
            self.table.clear(sequence)
        for snapshot in snapshots:
            self.store.drop(snapshot)
        self._recheck_cached = True
        return f"dropped {tokens:,} tokens"

    def _idle_of(self, job: str) -> list[Sequence]:
        if any(s.job == job and s.segment is not None for s in self.table):
            raise Refused("it is running: wait for the end of its request, or cancel it")
        return [s for s in self.table.idle() if s.job == job]

    # -- the loop ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._order if self.scheduling_paused and not self._replan else self.runs)

    def take_messages(self) -> list[ToFront]:
        """What happened since the last call."""
        out, self._out = self._out, []
        return out

    def step(self) -> None:
        """Plans when needed, computes one batch, samples. Raises `EngineFault`."""
        began = time.perf_counter()
        self._since_plan += 1
        if self._replan or (self.scheduler.policy.preempts and self._since_plan >= _REPLAN_STEPS):
            self._execute(self._plan())
        outputs = self._fill_batch()
        if not len(self._batch):
            # Nobody decodes, and those that prefill found no cell left.
            if self._order:
                self._pool_is_full()
            return
        decoding = sum(1 for _run, tokens, _index in outputs if len(tokens) == 1)
        prefilled = len(self._batch) - decoding
        past = _mean_past(outputs)
        span = self._span(outputs)
        filled = time.perf_counter()
        code = self.context.decode(self._batch)
        self.context.synchronize()
        decoded = time.perf_counter()
        if code == 1:
            self._pool_is_full()
            return
        if code != 0:
            raise EngineFault(f"llama_decode returned {code}")
        sampled = self._take_outputs(outputs)
        self.meter.observe(decoded - filled, decoding=decoding, tokens=span, prefilled=prefilled, past=past)
        self.totals.prefilled_tokens += prefilled
        self.totals.steps += 1
        time_ = self.step_time
        time_.steps += 1
        time_.total += time.perf_counter() - began
        time_.decode += decoded - filled
        time_.sampling += sampled

    def forget_old_jobs(self) -> None:
        """Drops jobs from which nothing came for the profile's `server.job_idle_s`."""
        self.completions.over(self.scheduler.forget(self.clock() - self.profile.server.job_idle_s))
        self.pinned &= self.scheduler.jobs.keys()

    def note(self, level: EventLevel, text: str) -> None:
        """Adds a line to the event log."""
        self._last_event += 1
        self.events.append(Event(id=self._last_event, at=time.time(), level=level, text=text))

    # -- planning ----------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        now = self.clock()
        waiting = [r for r in self.runs.values() if r.sequence is None]
        if self._recheck_cached:
            self._recheck_cached = False
            for run in waiting:
                source = self.placer.find(run.context.view(), run.request.job)
                restore_s = self._restore_s(source.holder)
                self.scheduler.set_cached(now, run.request.segment, source.length, restore_s)
        deferred = frozenset(r.request.segment for r in waiting if self._prefix_is_coming(r))
        # What the running ones have still to prefill is spoken for as well.
        taken = sum(len(r.context) for r in self.runs.values() if r.sequence is not None)
        room = max(0, self.table.cells_total - taken) if self.table.unified else None
        return self.scheduler.plan(now, View(self.meter.speeds, room, deferred, self.scheduling_paused))

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
        began = time.perf_counter()
        stats = self.store.stats
        restored = (stats.restore_bytes, stats.restore_s)
        placed = self.placer.place(run.context.view(), job, now)
        self.meter.observe_restore(stats.restore_bytes - restored[0], stats.restore_s - restored[1])
        self.step_time.kv_moves += time.perf_counter() - began
        if placed is None:
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
        self._release(run, now)
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

    def _span(self, outputs: list[tuple[Run, Tokens, int]]) -> int:
        """Context tokens that the decoding segments of a batch attend to."""
        return sum(len(run.context) for run, tokens, _index in outputs if len(tokens) == 1)

    def _cells_running(self) -> int:
        return sum(len(s.tokens) for s in self.table if s.segment is not None)

    def _restore_s(self, holder: object) -> float:
        if isinstance(holder, Snapshot):
            return holder.size / self.meter.speeds.restore_bytes_s
        return 0.0

    def _is_useful(self, job_id: str | None) -> bool:
        job = None if job_id is None else self.scheduler.jobs.get(job_id)
        return job is not None and not job.final

    # -- one batch ---------------------------------------------------------------------------------

    def _fill_batch(self) -> list[tuple[Run, Tokens, int]]:
        """Decodes first, then prefill in policy order within the budget."""
        self._batch.clear()
        outputs: list[tuple[Run, Tokens, int]] = []
        prefilling = []
        for run in self._order:
            if run.decoding:
                self._put(run, run.pending, outputs)
            else:
                prefilling.append(run)
        past = len(prefilling[0].sequence.tokens) if prefilling and prefilling[0].sequence else 0
        budget = self._prefill_budget(len(outputs), past)
        for run in prefilling:
            if budget <= 0:
                break
            tokens = run.pending[: even_chunk(len(run.pending), budget)]
            budget -= len(tokens)
            self._put(run, tokens, outputs)
        return outputs

    def _put(self, run: Run, tokens: Tokens, outputs: list[tuple[Run, Tokens, int]]) -> None:
        sequence = run.sequence
        assert sequence is not None
        last = len(sequence.tokens) + len(tokens) == len(run.context)
        index = self._batch.add(tokens, len(sequence.tokens), sequence.id, last_logits=last)
        outputs.append((run, tokens, index))

    def _prefill_budget(self, decoding: int, past: int) -> int:
        """Tokens of prefill that keep the step within `scheduler.max_step_ms` for those who wait."""
        room = self._batch.capacity - decoding
        others = decoding or len(self.runs) > len(self._order)
        if self.table.unified:
            room = self._cells_for_prefill(room, decoding)
        if not others:
            return room
        limit_s = self.profile.scheduler.max_step_ms / 1000
        tokens = self._cells_running() if decoding else 0
        budget = prefill_budget(self.meter.speeds, limit_s, decoding=decoding, tokens=tokens, past=past)
        return min(room, budget)

    def _cells_for_prefill(self, wanted: int, decoding: int) -> int:
        missing = sum(len(r.pending) for r in self._order if not r.decoding)
        self.placer.make_room(decoding + min(wanted, missing), self.clock())
        return max(0, min(wanted, self.table.cells_free - decoding)) if missing else wanted

    def _take_outputs(self, outputs: list[tuple[Run, Tokens, int]]) -> float:
        """Records what was computed, samples where a context is complete; returns seconds of sampling."""
        now = self.clock()
        sampling = 0.0
        ended: list[tuple[Run, str]] = []
        for run, tokens, index in outputs:
            assert run.sequence is not None
            self.table.append(run.sequence, tokens)
            before = run.output
            if len(run.sequence.tokens) == len(run.context):
                self._replan |= len(tokens) > 1
                began = time.perf_counter()
                reason = run.take(self.context.logits(index), self._candidates, self.job_limit, now)
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
            model=self.model.path.stem,
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
        segment = run.request.segment
        if run.sequence is not None:
            mine = run.sequence
            self._release(run, now)
            # Only the latest context of a job is expected back; older branches may go first.
            for other in self.table.idle():
                if other is not mine and other.job == run.request.job:
                    other.job = None
        ended = self.scheduler.finish(now, segment)
        self.timelines.ended(now, ended, outcome)
        self.completions.ended(now, ended)
        del self.runs[segment]
        run.close()
        self._replan = True
        self._recheck_cached = True

    def _release(self, run: Run, now: float) -> None:
        assert run.sequence is not None
        run.sequence.segment = None
        run.sequence.last_used = now
        run.sequence = None
        if run in self._order:
            self._order.remove(run)

    def _pool_is_full(self) -> None:
        """llama.cpp found no cells and changed nothing: park someone, or end the one that is too large."""
        now = self.clock()
        if self.placer.make_room(max(1, len(self._batch)), now):
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
            if not self.placer.park(sequence, now):
                self.note("warning", f"no room in RAM for {run.request.job}: its context will be recomputed")
            self.table.clear(sequence)
            return
        (run,) = running
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


def _mean_past(outputs: list[tuple[Run, Tokens, int]]) -> int:
    """Tokens before those that are prefilled in a batch, on average over them."""
    total = weighted = 0
    for run, tokens, _index in outputs:
        if len(tokens) > 1 and run.sequence is not None:
            total += len(tokens)
            weighted += len(tokens) * len(run.sequence.tokens)
    return weighted // total if total else 0
