"""Advice: rules that look at a frame and name the setting to change.

Each rule is a function of the frame alone; its threshold has a name here. A rule that lacks the figures it
needs says nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from astraea_local.frame import StateFrame
from astraea_local.tui.render.units import percent, seconds, size

Severity = Literal["info", "warning", "error"]

CELLS_FULL = 0.95
"""Share of the KV cells in use from which moves are caused by their number."""
MOVES_PER_CALL = 1.0
"""Parks for each finished call from which the cells are said to be too few."""
TIER_FULL = 0.95
CACHE_LOW = 0.5
CACHE_CALLS = 20
"""Calls from which a low cached share means something."""
QUEUE_PER_SLOT = 3.0
CONTEXT_NEAR = 0.9
"""Share of a job's longest context from which it is warned about."""
STEP_SLOW = 1.2
"""Mean step over `scheduler.max_step_ms`' default from which clients see it as stutter."""
STEP_MS = 250.0
MOVES_SHARE = 0.2
"""Share of a step's time spent on moving KV."""
PREEMPTIONS_PER_CALL = 0.5
PREEMPTION_CALLS = 20
FCFS_JOBS = 20
FCFS_BETTER = 1.1
"""Mean JCT over that of first come, first served, from which the policy is doubted."""
IDLE_SLOTS = 0.5
IDLE_CALLS = 100
OVERDUE_SHARE = 0.5
OVERDUE_JOBS = 6


@dataclass(frozen=True, slots=True)
class Advice:
    """One finding."""

    severity: Severity
    text: str
    """What was seen, and what to do."""
    field: str
    """The profile's field to change; empty when it is none."""


Rule = Callable[[StateFrame], Iterator[Advice]]


def advise(frame: StateFrame) -> list[Advice]:
    """All that applies, the gravest first."""
    found = [advice for rule in RULES for advice in rule(frame)]
    return sorted(found, key=lambda advice: _ORDER[advice.severity])


def _restarts(frame: StateFrame) -> Iterator[Advice]:
    if frame.restarts:
        text = (
            f"the engine was restarted {frame.restarts} times: see `astraea-local doctor`, use less context"
        )
        yield Advice("error", text, "context.size")


def _cells(frame: StateFrame) -> Iterator[Advice]:
    kv, calls = frame.kv, frame.totals.segments_finished
    full = kv.cells_total and kv.cells_used / kv.cells_total >= CELLS_FULL
    if full and calls and kv.parks / calls >= MOVES_PER_CALL:
        text = f"{kv.parks} states were parked for {calls} calls: use more cells, or kv.type_k q8_0"
        yield Advice("warning", text, "context.size")


def _vram(frame: StateFrame) -> Iterator[Advice]:
    memory = frame.memory
    if memory.pressure.get("vram") not in ("high", "critical"):
        return
    others = memory.vram_others or 0
    if others > (memory.vram_ours or 0):
        text = f"other processes hold {size(others)} of the GPU: let the context shrink while they run"
        yield Advice("warning", text, "memory.elastic")
    else:
        yield Advice("warning", "our own data nearly fill the GPU: use less context", "context.size")


def _host_memory(frame: StateFrame) -> Iterator[Advice]:
    if frame.memory.pressure.get("ram") in ("high", "critical"):
        text = f"{size(frame.memory.ram_available)} of RAM are left: park less of it there, more on disk"
        yield Advice("warning", text, "retention.ram_mib")


def _tiers(frame: StateFrame) -> Iterator[Advice]:
    kv = frame.kv
    if kv.ram_budget_bytes and kv.evictions and kv.ram_bytes / kv.ram_budget_bytes >= TIER_FULL:
        text = f"parked states fill their budget in RAM and {kv.evictions} had to leave: give them more"
        yield Advice("warning", text, "retention.ram_mib")
    if kv.disk_budget_bytes and kv.disk_bytes / kv.disk_budget_bytes >= TIER_FULL:
        text = "parked states fill their budget on disk: the next ones are recomputed"
        yield Advice("warning", text, "retention.disk_mib")


def _disk(frame: StateFrame) -> Iterator[Advice]:
    if frame.kv.disk_failures:
        text = f"{frame.kv.disk_failures} parked files could not be written or read: choose another folder"
        yield Advice("error", text, "retention.disk_path")
    elif frame.memory.pressure.get("disk") in ("high", "critical"):
        text = f"the disk of parked states has {size(frame.memory.disk_free or 0)} left: use another, or less"
        yield Advice("warning", text, "retention.disk_mib")


def _cache(frame: StateFrame) -> Iterator[Advice]:
    totals = frame.totals
    if totals.segments_finished < CACHE_CALLS or not totals.prompt_tokens:
        return
    share = totals.cached_tokens / totals.prompt_tokens
    if share < CACHE_LOW and not frame.kv.ram_budget_bytes:
        text = f"only {percent(share)} of prompts came from KV and nothing is parked: allow it"
        yield Advice("warning", text, "retention.ram_mib")
    elif share < CACHE_LOW and any(job.segments > 1 for job in frame.jobs):
        text = f"only {percent(share)} of prompts came from KV: their beginnings seem to change"
        yield Advice("info", text, "retention.policy")


def _queue(frame: StateFrame) -> Iterator[Advice]:
    slots = len(frame.slots)
    running = sum(slot.segment is not None for slot in frame.slots)
    if not slots or len(frame.queue) < QUEUE_PER_SLOT * slots:
        return
    if frame.speed.width < slots:
        text = f"{len(frame.queue)} wait while {frame.speed.width} of {slots} slots run: more would slow all"
        yield Advice("info", text, "context.slots")
    elif running == slots:
        yield Advice("warning", f"{len(frame.queue)} calls wait for {slots} slots: try more", "context.slots")


def _idle_slots(frame: StateFrame) -> Iterator[Advice]:
    slots = len(frame.slots)
    unused = sum(slot.phase == "free" for slot in frame.slots)
    enough = frame.totals.segments_finished >= IDLE_CALLS and frame.server.layout == "per_slot"
    if enough and slots > 1 and unused / slots > IDLE_SLOTS and _near_limit(frame):
        text = f"{unused} of {slots} slots are empty and a job nears its limit: use fewer, longer ones"
        yield Advice("info", text, "context.slots")


def _long_jobs(frame: StateFrame) -> Iterator[Advice]:
    near = _near_limit(frame)
    if not near:
        return
    per_slot = frame.server.layout == "per_slot"
    remedy = "one pool lets one job have more" if per_slot else "raise it"
    text = f"{near[0]} is near the {frame.server.job_context:,} tokens that a job may have: {remedy}"
    yield Advice("warning", text, "kv.layout" if per_slot else "context.size")


def _near_limit(frame: StateFrame) -> list[str]:
    limit = frame.server.job_context * CONTEXT_NEAR
    return [job.job for job in frame.jobs if limit and job.tokens >= limit]


def _gpu(frame: StateFrame) -> Iterator[Advice]:
    if frame.memory.gpu and frame.server.offloaded.startswith("0"):
        yield Advice("warning", f"{frame.memory.gpu} is there and no layer is on it", "model.gpu_layers")


def _steps(frame: StateFrame) -> Iterator[Advice]:
    mean = frame.steps.get("mean_ms", 0.0)
    if mean > STEP_SLOW * STEP_MS:
        text = f"a step takes {mean:.0f} ms on average: smaller ones let answers flow more evenly"
        yield Advice("warning", text, "scheduler.max_step_ms")
    moves = frame.steps.get("kv_moves_ms", 0.0)
    if mean and moves / mean > MOVES_SHARE:
        text = f"{percent(moves / mean)} of the time goes into moving KV: move it in smaller pieces, or less"
        yield Advice("warning", text, "kv.max_stall_ms")


def _preemptions(frame: StateFrame) -> Iterator[Advice]:
    totals = frame.totals
    calls = totals.segments_finished
    if calls >= PREEMPTION_CALLS and totals.preemptions / calls > PREEMPTIONS_PER_CALL:
        text = f"{totals.preemptions} preemptions in {calls} calls: make it harder to take a slot"
        yield Advice("info", text, "scheduler.preempt_factor")


def _policy(frame: StateFrame) -> Iterator[Advice]:
    done = frame.completion
    if done.finished < FCFS_JOBS or not done.fcfs_mean_s or frame.server.policy == "fcfs":
        return
    if done.mean_s > FCFS_BETTER * done.fcfs_mean_s:
        text = f"jobs take {seconds(done.mean_s)}, an estimate of FCFS is {seconds(done.fcfs_mean_s)}"
        yield Advice("warning", f"{text}: try another policy (key o)", "scheduler.policy")


def _restores(frame: StateFrame) -> Iterator[Advice]:
    if frame.kv.restore_failures:
        text = f"{frame.kv.restore_failures} parked states were lost and recomputed; see the log"
        yield Advice("warning", text, "kv.layout")


def _overdue(frame: StateFrame) -> Iterator[Advice]:
    waits = [j for j in frame.jobs if j.state == "waiting" and j.wait_p90_s is not None]
    late = [j for j in waits if j.since_s > (j.wait_p90_s or 0)]
    if len(waits) >= OVERDUE_JOBS and len(late) / len(waits) > OVERDUE_SHARE:
        text = f"{len(late)} of {len(waits)} tools take longer than predicted: let it record and learn"
        yield Advice("info", text, "prediction.history")


_ORDER = {"error": 0, "warning": 1, "info": 2}
RULES: tuple[Rule, ...] = (
    _restarts,
    _disk,
    _vram,
    _host_memory,
    _cells,
    _tiers,
    _gpu,
    _long_jobs,
    _queue,
    _steps,
    _policy,
    _cache,
    _restores,
    _preemptions,
    _idle_slots,
    _overdue,
)
