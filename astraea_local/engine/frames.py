"""Builds the StateFrame from the core's state."""

import os
import time
from dataclasses import dataclass, field

from astraea_local import __version__
from astraea_local.engine.core import EngineCore
from astraea_local.engine.kv.sharing import shared_tokens
from astraea_local.engine.memory_watch import MemoryWatch
from astraea_local.engine.rates import Rates
from astraea_local.engine.run import Run
from astraea_local.engine.slots import Sequence
from astraea_local.frame import (
    JobRow,
    JobState,
    KvRow,
    KvTier,
    SegmentRow,
    ServerInfo,
    SlotRow,
    SpeedRow,
    StateFrame,
)
from astraea_local.scheduler.job import Job, SegmentState


@dataclass(slots=True)
class FrameBuilder:
    """Makes frames of one core."""

    core: EngineCore
    watch: MemoryWatch
    started: float = field(default_factory=time.monotonic)
    _rates: Rates = field(default_factory=Rates)
    _shared: dict[str, int] = field(default_factory=dict)

    def build(self) -> StateFrame:
        """The present picture."""
        core = self.core
        now = core.clock()
        speeds = core.meter.speeds
        sequences = list(core.table) if core.residency.attached else []
        self._rates.look(now, {i: s.received for i, s in core.scheduler.running.items()})
        self._shared = shared_tokens(core.residency.store.tree)
        slots = [self._slot(s) for s in sequences]
        live = [s for s in sequences if s.segment is not None]
        running = max(1, len(live))
        step_s = speeds.decode_step(running, sum(len(s.tokens) for s in live))
        return StateFrame(
            at=time.time(),
            uptime_s=time.monotonic() - self.started,
            status="ready" if core.residency.attached else "paused",
            scheduling_paused=not core.dispatcher.admitting,
            server=self.server_info(),
            jobs=[self._job(job, now) for job in core.scheduler.jobs.values()],
            queue=self._queue(now),
            slots=slots,
            kv=self._kv_row(),
            memory=self.watch.row(),
            completion=core.completions.look(now, core.scheduler.jobs.values()),
            speed=SpeedRow(
                prefill_tokens_s=speeds.prefill_rate(0),
                decode_step_s=step_s,
                decode_tokens_s=running / step_s,
                width=core.scheduler.width(now, speeds),
            ),
            steps=self._steps(),
            totals=core.totals,
            events=core.log.lines,
        )

    def _kv_row(self) -> KvRow:
        residency = self.core.residency
        store, table = residency.store, residency.table if residency.attached else None
        stats, disk = store.stats, store.disk
        return KvRow(
            cells_used=0 if table is None else table.cells_used,
            cells_total=0 if table is None else table.cells_total,
            ram_bytes=store.ram_bytes,
            ram_budget_bytes=store.arena.budget,
            ram_states=sum(part.buffer is not None for part in store.tree),
            parks=stats.parks,
            restores=stats.restores,
            restore_failures=stats.failures,
            evictions=stats.evictions,
            park_s=stats.park_s,
            restore_s=stats.restore_s,
            disk_bytes=store.disk_bytes,
            disk_budget_bytes=0 if disk is None else disk.budget,
            disk_states=sum(part.on_disk for part in store.tree),
            disk_writes=0 if disk is None else disk.stats.writes,
            disk_reads=0 if disk is None else disk.stats.reads,
            disk_failures=0 if disk is None else disk.stats.failures,
            prefetches=residency.stats.prefetches,
            compactions=residency.stats.compactions,
            rebuilds=residency.stats.rebuilds,
            shared_bytes=stats.shared_bytes,
        )

    def server_info(self) -> ServerInfo:
        """The constant part."""
        core = self.core
        return ServerInfo(
            version=__version__,
            model=core.model_name,
            model_class=core.model_class.value,
            profile=core.profile.name,
            policy=core.scheduler.policy.name,
            layout=core.layout,
            slots=core.scheduler.slots,
            context=core.cells,
            job_context=core.job_limit,
            offloaded=core.offloaded,
            pid=os.getpid(),
            quant=core.quantization,
            parameters=core.parameters,
            retention=core.residency.policy.name,
        )

    def _steps(self) -> dict[str, float]:
        times = self.core.step_time
        steps = max(1, times.steps)
        return {
            "steps": float(times.steps),
            "mean_ms": 1000 * times.total / steps,
            "llama_decode_ms": 1000 * times.decode / steps,
            "sampling_ms": 1000 * times.sampling / steps,
            "kv_moves_ms": 1000 * times.kv_moves / steps,
        }

    def _job(self, job: Job, now: float) -> JobRow:
        core = self.core
        runs = [core.runs[i] for i in job.active if i in core.runs]
        tier, kv_tokens, kv_bytes, kv_shared = self._kv(job.id)
        move, move_s = self._next_move(job.id, now)
        segments = [core.scheduler.segments[i] for i in job.active if i in core.scheduler.segments]
        since = max((s.since for s in segments), default=job.since)
        state = job_state(job, runs)
        core.timelines.kv_at(now, job.id, tier)
        wait = core.scheduler.predictor.wait(job) if state == "waiting" else None
        return JobRow(
            job=job.id,
            parent=job.parent,
            state=state,
            queue=core.scheduler.policy.level(job),
            kind=job.kind,
            bound=job.bound.value,
            tool=job.tool,
            tool_s=job.tool_s,
            tokens=max((len(r.context) for r in runs), default=kv_tokens),
            attained=job.attained,
            segments=job.segments,
            kv=tier,
            kv_tokens=kv_tokens,
            kv_bytes=kv_bytes,
            kv_shared=kv_shared,
            pinned=job.id in core.residency.pinned,
            next_move=move,
            next_move_s=move_s,
            waited_s=job.waited + sum(s.waited_at(now) for s in segments),
            since_s=now - since,
            reason=job.reason,
            priority=job.priority,
            created_s=now - job.created,
            prompt_tokens=job.prompt_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=job.output_tokens + sum(s.output for s in segments),
            wait_p50_s=None if wait is None else wait.quantile_beyond(0.5, now - since),
            wait_p90_s=None if wait is None else wait.quantile_beyond(0.9, now - since),
            prefix_note=job.note,
        )

    def _kv(self, job_id: str) -> tuple[KvTier, int, int, int]:
        """Where a job's KV is, its tokens, its bytes, and the tokens that others share."""
        core = self.core
        mine = [s for s in core.table if s.job == job_id] if core.residency.attached else []
        tier, parked, size = core.residency.store.tier_of(job_id)
        longest = max(mine, key=lambda s: len(s.tokens), default=None)
        if longest is not None and len(longest.tokens) >= max(1, parked):
            resident = len(longest.tokens)
            size = int(resident * core.meter.speeds.kv_token_bytes)
            return "slot", resident, size, core.table.shared_tokens(longest)
        return tier, parked, size, self._shared.get(job_id, 0)

    def _next_move(self, job_id: str, now: float) -> tuple[str, float | None]:
        """What will be done with a waiting job's KV, and in how many seconds if that is decided."""
        residency = self.core.residency
        away = residency.away.get(job_id)
        if away is not None:
            back = "brought back before its job" if away.back_at is not None else "brought back on demand"
            return f"{back} ({away.reason})", None if away.back_at is None else max(0.0, away.back_at - now)
        for stay in residency.stays.values():
            if stay.job == job_id and stay.verdict is not None:
                until = stay.verdict.until
                return stay.verdict.reason, None if until is None else max(0.0, until - now)
        return "", None

    def _queue(self, now: float) -> list[SegmentRow]:
        core = self.core
        rows = []
        for segment in core.scheduler.segments.values():
            if segment.state is not SegmentState.WAITING:
                continue
            place = core.scheduler.explain(segment, now)
            rows.append(
                SegmentRow(
                    segment=segment.id,
                    job=segment.job,
                    queue=place.level,
                    prompt_tokens=segment.prompt_tokens,
                    cached_tokens=segment.cached,
                    output_tokens=segment.output,
                    waited_s=segment.waited_at(now),
                    service_s=place.service_s,
                    score=place.score,
                    reason=place.reason,
                )
            )
        return sorted(rows, key=lambda r: (r.queue, -r.score))

    def _slot(self, sequence: Sequence) -> SlotRow:
        run = None if sequence.segment is None else self.core.runs[sequence.segment]
        if run is None:
            phase = "resident" if len(sequence.tokens) else "free"
            return SlotRow(
                slot=sequence.id,
                job=sequence.job,
                segment=None,
                phase=phase,
                tokens=len(sequence.tokens),
                done=0,
                total=0,
            )
        decoding = run.decoding and run.output > 0
        return SlotRow(
            slot=sequence.id,
            job=sequence.job,
            segment=sequence.segment,
            phase="decode" if decoding else "prefill",
            tokens=len(sequence.tokens),
            done=run.output if decoding else len(sequence.tokens),
            total=run.request.max_output if decoding else len(run.context),
            tokens_s=self._rates.of(run.request.segment),
            quantum=self.core.scheduler.running[run.request.segment].quantum,
        )


def job_state(job: Job, runs: list[Run]) -> JobState:
    """What a job does now; `runs` are those of its segments that are queued or running."""
    if not runs:
        return "done" if job.final else "waiting"
    running = [r for r in runs if r.sequence is not None]
    if not running:
        return "preempted" if any(r.started_at is not None for r in runs) else "queued"
    return "decode" if any(r.output for r in running) else "prefill"
