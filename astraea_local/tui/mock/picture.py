"""The made-up world as a StateFrame."""

from typing import TYPE_CHECKING

from astraea_local import __version__
from astraea_local.frame import (
    CompletionRow,
    JobRow,
    KvRow,
    MemoryRow,
    PressureLevel,
    SegmentRow,
    ServerInfo,
    SlotRow,
    SpeedRow,
    StateFrame,
)
from astraea_local.tui.mock.agent import DECODE_S, PREFILL_S, TO_DISK_S, TO_RAM_S, Agent

if TYPE_CHECKING:
    from astraea_local.tui.mock.world import MockWorld

_GIB = 1 << 30
_KV_BYTES = 131_072
"""Bytes of KV per token: a model of 8 billion parameters with grouped queries."""
_ALIKE = 900
"""Tokens of the instructions with which all agents begin."""
_WATERMARKS = {"low": 0.80, "high": 0.90, "critical": 0.95}


def picture(world: "MockWorld") -> StateFrame:
    """All of it as it is now."""
    agents = world.jobs.values()
    jobs = [_job(job, world.now) for job in agents]
    slots = [_slot(index, world) for index in range(world.slots)]
    queue = sorted(
        (_queued(job, world.now) for job in agents if job.state == "queued"),
        key=lambda row: (row.queue, -row.score),
    )
    running = max(1, sum(slot.segment is not None for slot in slots))
    return StateFrame(
        at=world.now,
        uptime_s=world.now - world.start,
        status="paused" if world.stopped else "ready",
        scheduling_paused=world.paused,
        server=_server(world),
        jobs=jobs,
        queue=queue,
        slots=slots,
        kv=_kv(jobs, world),
        memory=_memory(world),
        completion=_completion([job.jct_s for job in world.finished]),
        speed=SpeedRow(
            prefill_tokens_s=PREFILL_S,
            decode_step_s=running / (running * DECODE_S),
            decode_tokens_s=running * DECODE_S,
            width=world.slots,
        ),
        steps={
            "steps": float(world.totals.steps),
            "mean_ms": 31.0,
            "llama_decode_ms": 29.0,
            "kv_moves_ms": 0.6,
        },
        totals=world.totals.model_copy(),
        events=list(world.events),
    )


def _server(world: "MockWorld") -> ServerInfo:
    return ServerInfo(
        version=__version__,
        model="mock-8b",
        model_class="full attention",
        profile="mock",
        policy=world.policy,
        layout="unified",
        slots=world.slots,
        context=world.context,
        job_context=world.context,
        offloaded="33/33",
        pid=1,
        quant="Q4_K_M",
        parameters=8_030_000_000,
        retention="adaptive",
    )


def _job(job: Agent, now: float) -> JobRow:
    waits = job.state == "waiting"
    move, move_s = _next_move(job, now)
    return JobRow(
        job=job.name,
        parent=job.parent,
        state=job.state,
        kind="mock",
        bound="io" if job.tool_s > 5 else "-",
        tool=job.tool,
        tool_s=job.tool_s,
        queue=job.level,
        tokens=job.tokens,
        attained=job.attained,
        segments=len(job.segments),
        kv=job.kv,
        kv_tokens=job.tokens if job.kv != "none" else 0,
        waited_s=job.waited,
        since_s=now - job.since,
        reason="" if waits else f"Q{job.level}, ratio {job.score(now):.1f}: {job.new:,} tokens uncached",
        priority=job.priority,
        created_s=now - job.born,
        prompt_tokens=job.prompt_tokens,
        cached_tokens=job.cached_tokens,
        output_tokens=job.output_tokens,
        kv_bytes=job.tokens * _KV_BYTES if job.kv != "none" else 0,
        kv_shared=_ALIKE if job.kv in ("ram", "disk") else 0,
        pinned=job.pinned,
        wait_p50_s=job.tool_p50 if waits else None,
        wait_p90_s=5 * job.tool_p50 if waits else None,
        next_move=move,
        next_move_s=move_s,
    )


def _next_move(job: Agent, now: float) -> tuple[str, float | None]:
    if job.state != "waiting":
        return "", None
    lasted = now - job.since
    if job.pinned:
        return "stay: pinned", None
    if job.kv == "slot":
        return "park to RAM", max(0.0, TO_RAM_S - lasted)
    if job.kv == "ram":
        return "move to disk", max(0.0, TO_DISK_S - lasted)
    return "restore before it returns", max(0.0, job.tool_p50 - lasted)


def _queued(job: Agent, now: float) -> SegmentRow:
    return SegmentRow(
        segment=job.segments[-1].segment,
        job=job.name,
        queue=job.level,
        prompt_tokens=job.tokens,
        cached_tokens=job.cached,
        output_tokens=0,
        waited_s=now - job.since,
        service_s=job.service_s,
        score=job.score(now),
        reason=f"{job.new:,} tokens uncached, level {job.level}",
    )


def _slot(index: int, world: "MockWorld") -> SlotRow:
    job = next((j for j in world.jobs.values() if j.slot == index and j.kv == "slot"), None)
    if job is None:
        return SlotRow(slot=index, job=None, segment=None, phase="free", tokens=0, done=0, total=0)
    prefills, decodes = job.state == "prefill", job.state == "decode"
    return SlotRow(
        slot=index,
        job=job.name,
        segment=job.segments[-1].segment if prefills or decodes else None,
        phase="prefill" if prefills else "decode" if decodes else "resident",
        tokens=job.cached + job.done if prefills else job.tokens,
        done=job.cached + job.done if prefills else job.output,
        total=job.tokens if prefills else 2048,
        tokens_s=PREFILL_S / 2 if prefills else DECODE_S if decodes else 0.0,
        quantum=job.quantum,
    )


def _kv(jobs: list[JobRow], world: "MockWorld") -> KvRow:
    ram, disk = ([job for job in jobs if job.kv == tier] for tier in ("ram", "disk"))
    parks, restores = world.parks, world.restores
    return KvRow(
        cells_used=min(world.context, sum(job.kv_tokens for job in jobs if job.kv == "slot")),
        cells_total=world.context,
        ram_bytes=sum(job.kv_bytes for job in ram),
        ram_budget_bytes=24 * _GIB,
        ram_states=len(ram),
        parks=parks,
        restores=restores,
        restore_failures=0,
        evictions=parks // 3,
        park_s=0.006 * parks,
        restore_s=0.007 * restores,
        disk_bytes=sum(job.kv_bytes for job in disk),
        disk_budget_bytes=96 * _GIB,
        disk_states=len(disk),
        disk_writes=parks // 4,
        disk_reads=restores // 5,
        prefetches=restores // 2,
        shared_bytes=len(ram) * 800 * _KV_BYTES,
    )


def _memory(world: "MockWorld") -> MemoryRow:
    seconds = world.now - world.start
    weights = int(4.9 * _GIB)
    kv = world.context * _KV_BYTES
    # Somebody else's process comes and goes every two minutes.
    others = int((2.4 if seconds % 120 < 70 else 5.6) * _GIB)
    ours = weights + kv + int(0.9 * _GIB)
    total = 24 * _GIB
    used = (ours + others) / total
    agents = world.jobs.values()
    cells = sum(job.tokens for job in agents if job.kv == "slot") / world.context
    return MemoryRow(
        gpu="Mock GPU 24G",
        vram_total=total,
        vram_free=max(0, total - ours - others),
        vram_ours=ours,
        vram_others=others,
        gpu_load=0.9 if any(job.slot is not None for job in agents) else 0.02,
        gpu_temperature=64.0,
        weights_bytes=weights,
        context_bytes=kv,
        ram_total=64 * _GIB,
        ram_available=38 * _GIB,
        ram_ours=9 * _GIB,
        disk_total=1000 * _GIB,
        disk_free=312 * _GIB,
        pressure={"cells": _pressure(cells), "vram": _pressure(used), "ram": "low", "disk": "low"},
        watermarks=_WATERMARKS,
    )


def _completion(times: list[float]) -> CompletionRow:
    if not times:
        return CompletionRow()
    times.sort()
    mean, p95 = sum(times) / len(times), times[int(0.95 * (len(times) - 1))]
    return CompletionRow(
        finished=len(times), mean_s=mean, p95_s=p95, fcfs_mean_s=1.3 * mean, fcfs_p95_s=1.1 * p95
    )


def _pressure(share: float) -> PressureLevel:
    if share >= _WATERMARKS["critical"]:
        return "critical"
    if share >= _WATERMARKS["high"]:
        return "high"
    return "low" if share < _WATERMARKS["low"] else "normal"
