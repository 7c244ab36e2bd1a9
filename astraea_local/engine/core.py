"""EngineCore: the step loop. Executes the scheduler's plan, one llama.cpp batch per step.

A segment is a list of tokens of which a leading part is in KV. Whatever is missing is computed: many
tokens (prefill) or one (decode), with the same code. Preempting a segment is taking its sequence away;
resuming it is placing its tokens again, wherever their KV is by then.
"""

import time
from collections.abc import Callable

from astraea_local.calibration import Layout
from astraea_local.engine.batcher import Batcher
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
from astraea_local.engine.dispatcher import Dispatcher
from astraea_local.engine.eventlog import EngineLog
from astraea_local.engine.facts import EngineFacts
from astraea_local.engine.kv.tiers import Tiers, ram_only
from astraea_local.engine.kv.transfer import Form, form_of
from astraea_local.engine.lifecycle import Lifecycle
from astraea_local.engine.messages import Cancel, EndJob, Submit, ToFront
from astraea_local.engine.model_runner import EngineFault, ModelRunner, StepTime
from astraea_local.engine.recorder import Recorder
from astraea_local.engine.residency import Residency
from astraea_local.engine.run import Run
from astraea_local.engine.slots import SequenceTable
from astraea_local.engine.speed import SpeedMeter, measure, prefill
from astraea_local.engine.stall import Stall
from astraea_local.engine.text import PieceTable
from astraea_local.engine.timeline import Timelines
from astraea_local.frame import PressureLevel, Totals
from astraea_local.history import SegmentRecord
from astraea_local.profile import Profile
from astraea_local.scheduler import retention
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.scheduler import Scheduler
from astraea_local.scheduler.speeds import Speeds

# While nothing runs, moving KV holds up nobody but who comes next.
_IDLE_STALL_S = 0.02
# What a step that can only wait for the disk sleeps.
_NAP_S = 0.001

OpenTiers = Callable[[Form, Callable[[str], None]], Tiers]
"""Gets the form of states, and whom to tell what users should know."""


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
        self.log = EngineLog()
        self.runs: dict[int, Run] = {}
        """Segments that are queued or running, by id."""
        self.levels: dict[str, PressureLevel] = {}
        """Pressure on `cells`, `vram`, `ram` and `disk`."""
        self.timelines = Timelines(self.scheduler, lambda: self.meter.speeds)
        self.completions = Completions(profile.context.slots)
        self._vocab = vocab or model.vocab
        self._batch = Batch(profile.context.batch)
        self._pieces = PieceTable(self._vocab)
        self.guides = Guides(self._vocab)
        self.meter = SpeedMeter(speeds or measure(context, self._batch, profile.context.slots))
        self.residency = self._new_residency(context, open_tiers)
        self.lifecycle = Lifecycle(
            self.scheduler,
            self.residency,
            self.runs,
            self.timelines,
            self.completions,
            self.totals,
            self.log,
            None if record is None else Recorder(self.model_name, record),
            clock,
            profile.server.stream_interval_ms / 1000,
        )
        self.dispatcher = Dispatcher(
            self.scheduler, self.residency, self.lifecycle, self.meter, self.log, clock
        )
        self._runner = ModelRunner(
            Batcher(self._batch, profile.scheduler.max_step_ms / 1000, self._make_room),
            Candidates(model.vocab.n_tokens),
            self.scheduler,
            self.lifecycle,
            self.meter,
            self.totals,
            self.step_time,
            clock,
        )
        self._stall = Stall(None)
        self._trained_for = model.n_ctx_train
        self.context: Context | None = None
        self.attach(context)

    def _new_residency(self, context: Context, open_tiers: OpenTiers | None) -> Residency:
        profile = self.profile
        full = self.model_class is ModelClass.FULL
        form = _form(context, self._batch) if full else Form(by_rows=False)

        def note(text: str) -> None:
            self.log.note("warning", text)

        facts = EngineFacts(self.scheduler, self.runs, lambda: self.meter.speeds, self.clock, self.levels)
        facts.residency = Residency(
            profile.retention,
            retention.make(
                profile.retention.policy, profile.retention, watermark=profile.scheduler.paper_watermark
            ),
            facts,
            model_class=self.model_class,
            by_rows=form.by_rows,
            tiers=ram_only(profile) if open_tiers is None else open_tiers(form, note),
            note=note,
            clock=self.clock,
        )
        return facts.residency

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
        self.lifecycle.stale.plan = self.lifecycle.stale.cached = True

    def detach(self) -> None:
        """Pauses what runs and parks all KV, so that the context may be freed."""
        for run in [r for r in self.runs.values() if r.sequence is not None]:
            self.lifecycle.preempt(run, "the context is made anew")
        for run in self.runs.values():
            self.residency.placer.give_up(run.request.segment)
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
            self.lifecycle.reject(request.segment, text, "context_length_exceeded")
            return
        try:
            run = Run(request, self._vocab, self.guides, self._pieces, now)
        except BindingError as error:
            self.lifecycle.reject(request.segment, str(error), "invalid_grammar")
            return
        self.lifecycle.submitted(run)

    def cancel(self, message: Cancel) -> None:
        """Ends a segment whose client is gone; what it computed stays reusable."""
        run = self.runs.get(message.segment)
        if run is not None:
            self.totals.segments_cancelled += 1
            self.lifecycle.end(run, "cancelled")

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

    def kv_changed(self) -> None:
        """KV was moved or dropped on request: what waiting segments can reuse is looked for again."""
        self.lifecycle.stale.cached = True

    def pressure_changed(self, levels: dict[str, PressureLevel]) -> None:
        """Memory is scarcer or less so: decisions about idle KV are reconsidered."""
        for name, level in levels.items():
            if level in ("high", "critical") and self.levels.get(name) not in ("high", "critical"):
                self.log.note("warning", f"{name} is {level}")
        self.levels.clear()
        self.levels.update(levels)
        self.residency.pressure_changed(self.levels.get("ram", "normal"))

    def note_job(self, job_id: str, text: str) -> None:
        """Adds a line about a job to the event log; the job keeps it, to be seen later."""
        self.log.note("warning", f"{job_id}: {text}")
        if (job := self.scheduler.jobs.get(job_id)) is not None:
            job.note = text

    # -- the loop ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return self.context is not None and self.dispatcher.has_work

    def take_messages(self) -> list[ToFront]:
        """What happened since the last call."""
        return self.lifecycle.take_messages()

    def idle(self) -> bool:
        """What is due while nothing runs; True when more of it waits to be done."""
        self.residency.tick(Stall(_IDLE_STALL_S), busy=False)
        return self.residency.unfinished

    def step(self) -> None:
        """Plans when needed, computes one batch, samples. Raises `EngineFault`."""
        began = time.perf_counter()
        assert self.context is not None
        lifecycle = self.lifecycle
        self._stall = Stall(self.profile.kv.max_stall_ms / 1000 if lifecycle.order else None)
        self.residency.tick(self._stall, busy=True)
        self.residency.compact(self.step_time.steps, self._stall)
        self.dispatcher.update(self._stall)
        computed = self._runner.compute(self.context, self.table, limit=self.job_limit)
        self.step_time.kv_moves += self._stall.spent
        if computed:
            self.step_time.steps += 1
            self.step_time.total += time.perf_counter() - began
        elif lifecycle.order:
            self._pool_is_full()
        elif lifecycle.stale.plan:
            time.sleep(_NAP_S)

    def forget_old_jobs(self) -> None:
        """Drops jobs from which nothing came for the profile's `server.job_idle_s`."""
        self.completions.over(self.scheduler.forget(self.clock() - self.profile.server.job_idle_s))
        self.residency.pinned &= self.scheduler.jobs.keys()

    def _make_room(self, cells: int) -> None:
        self.residency.placer.make_room(cells, self._stall)

    def _pool_is_full(self) -> None:
        """Those that run found no cell, and nothing has changed."""
        if not self.table.unified:
            raise EngineFault("no room in a sequence that should have some")
        self.dispatcher.relieve_pool(max(1, len(self._batch)))


def _form(context: Context, batch: Batch) -> Form:
    """How this context's states can be kept; leaves the context empty."""
    prefill(context, batch, 4)
    found = form_of(context, 0)
    context.clear()
    return found
