"""A server that does not exist: seeded agents that arrive, queue, run, and wait for tools, for `top --mock`.

It follows no real scheduler. Its figures are plausible, nothing more, and the same seed gives the same.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from astraea_local import __version__
from astraea_local.frame import (
    CompletionRow,
    Event,
    EventLevel,
    JobRow,
    JobState,
    KvRow,
    KvTier,
    MemoryRow,
    PressureLevel,
    SegmentRow,
    ServerInfo,
    SlotRow,
    SpeedRow,
    StateFrame,
    Totals,
)
from astraea_local.job_detail import JobDetail, SegmentDetail, Span, WaitDetail
from astraea_local.past_jobs import Page, PastJob, Query
from astraea_local.tui.actions import Action, ActionError
from astraea_local.tui.source import INTERVAL_S, Link, Transport, Update

STEP_S = 0.25
_GIB = 1 << 30
_KV_BYTES = 131_072
"""Bytes of KV per token: a model of 8 billion parameters with grouped queries."""
_PREFILL_S = 1800.0
_DECODE_S = 38.0
_SLOTS = 6
_CONTEXT = 98_304
_LEVELS = (8_192, 32_768, 98_304)
_TO_RAM_S = 6.0
_TO_DISK_S = 45.0
_TOOLS = ("bash:pytest", "bash:grep", "read_file", "edit_file", "web_search", "bash:cargo", "browser")
_NAMES = ("coder", "reviewer", "planner", "tests", "docs", "research", "refactor")
_WATERMARKS = {"low": 0.80, "high": 0.90, "critical": 0.95}


@dataclass(slots=True)
class _Job:
    name: str
    parent: str | None
    calls: int
    born: float
    state: JobState = "queued"
    since: float = 0.0
    tokens: int = 0
    cached: int = 0
    new: int = 0
    output: int = 0
    wanted: int = 0
    done: int = 0
    kv: KvTier = "none"
    tool: str = ""
    tool_until: float = 0.0
    tool_p50: float = 0.0
    tool_s: float = 0.0
    waited: float = 0.0
    attained: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    slot: int | None = None
    pinned: bool = False
    priority: int = 0
    quantum: int = 0
    segments: list[SegmentDetail] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def level(self) -> int:
        return max(0, min(len(_LEVELS), sum(self.attained > t for t in _LEVELS) - self.priority))


class MockWorld:
    """All agents and the machine; `step` lets `STEP_S` seconds pass."""

    def __init__(self, seed: int = 1, *, agents: int = 24, start: float = 1.8e9) -> None:
        """`agents`: how many there are at a time, about. `start`: Unix time of the first frame."""
        self.now = start
        self.jobs: dict[str, _Job] = {}
        self.finished: list[PastJob] = []
        self.policy = "astraea"
        self.paused = False
        self.stopped = False
        self.slots = _SLOTS
        self.context = _CONTEXT
        self._start = start
        self._agents = agents
        self._rng = random.Random(seed)  # noqa: S311
        self._names = 0
        self._segments = 0
        self._events: deque[Event] = deque(maxlen=200)
        self._logged = 0
        self._totals = Totals()
        self._parks = self._restores = 0
        self.log("info", "mock server: nothing of this is real")
        for _ in range(max(1, agents * 2 // 3)):
            self._arrive()

    def log(self, level: EventLevel, text: str) -> None:
        """A line of the event log."""
        self._logged += 1
        self._events.append(Event(id=self._logged, at=self.now, level=level, text=text))

    def step(self) -> None:
        """A quarter of a second."""
        self.now += STEP_S
        if len(self.jobs) < self._agents and self._rng.random() < STEP_S * self._agents / 12:
            self._arrive()
        for job in list(self.jobs.values()):
            self._advance(job)
        if not self.paused and not self.stopped:
            self._admit()

    def _arrive(self) -> None:
        self._names += 1
        parent = None
        if self.jobs and self._rng.random() < 0.2:
            parent = self._rng.choice([job.parent or job.name for job in self.jobs.values()])
        name = f"{self._rng.choice(_NAMES)}-{self._names}"
        job = _Job(name, parent, calls=self._rng.randint(3, 14), born=self.now)
        self.jobs[name] = job
        self._request(job, self._rng.randint(800, 6000))

    def _request(self, job: _Job, new: int) -> None:
        job.cached = 0 if job.kv == "none" else job.tokens
        job.new = new + job.tokens - job.cached
        job.tokens += new
        job.wanted = max(8, int(self._rng.lognormvariate(4.6, 0.9)))
        job.output = job.done = job.quantum = 0
        job.prompt_tokens += job.tokens
        job.cached_tokens += job.cached
        self._totals.prompt_tokens += job.tokens
        self._totals.cached_tokens += job.cached
        wait = None
        if job.segments and job.spans:
            took = self.now - job.since
            wait = WaitDetail(
                tool=job.tool,
                start=job.since,
                seconds=took,
                predicted_p50_s=job.tool_p50,
                predicted_p90_s=5 * job.tool_p50,
            )
        self._segments += 1
        job.segments.append(
            SegmentDetail(
                segment=self._segments,
                number=len(job.segments),
                arrived=self.now,
                prompt_tokens=job.tokens,
                cached_tokens=job.cached,
                predicted_output_p50=100,
                predicted_output_p90=320,
                predicted_service_s=job.new / _PREFILL_S + 100 / _DECODE_S,
                wait=wait,
            )
        )
        self._become(job, "queued")

    def _become(self, job: _Job, state: JobState) -> None:
        kind = {"waiting": "tool", "preempted": "paused"}.get(state, state)
        if job.spans and job.spans[-1].end is None:
            job.spans[-1].end = self.now
        if state != "done":
            tier = job.kv if state == "waiting" else None
            job.spans.append(Span.model_validate({"kind": kind, "start": self.now, "tier": tier}))
        job.state, job.since = state, self.now

    def _advance(self, job: _Job) -> None:
        match job.state:
            case "queued":
                job.waited += STEP_S
                job.segments[-1].waited_s += STEP_S
            case "prefill":
                self._prefill(job)
            case "decode":
                self._decode(job)
            case "waiting":
                self._wait(job)

    def _prefill(self, job: _Job) -> None:
        part = min(job.new - job.done, int(_PREFILL_S * STEP_S * self._rng.uniform(0.4, 1.0)) + 1)
        self._receive(job, part)
        self._totals.prefilled_tokens += part
        job.done += part
        if job.done >= job.new:
            self._become(job, "decode")

    def _decode(self, job: _Job) -> None:
        part = min(job.wanted - job.output, max(1, int(_DECODE_S * STEP_S * self._rng.uniform(0.7, 1.1))))
        self._receive(job, part)
        self._totals.decoded_tokens += part
        job.output += part
        job.output_tokens += part
        job.tokens += part
        job.segments[-1].output_tokens = job.output
        if job.output >= job.wanted:
            self._answer(job)

    def _receive(self, job: _Job, tokens: int) -> None:
        job.attained += tokens
        job.quantum += tokens
        job.segments[-1].service_s += STEP_S
        self._totals.steps += 1

    def _answer(self, job: _Job) -> None:
        self._totals.segments_finished += 1
        segment = job.segments[-1]
        segment.ended, segment.outcome = self.now, "stop"
        if len(job.segments) >= job.calls:
            self._finish(job, "stop")
            return
        job.tool = self._rng.choice(_TOOLS)
        job.tool_p50 = 0.5 + 2.5 * _TOOLS.index(job.tool)
        job.tool_until = self.now + job.tool_p50 * self._rng.lognormvariate(0.0, 1.0)
        self._become(job, "waiting")

    def _finish(self, job: _Job, outcome: str) -> None:
        self._become(job, "done")
        del self.jobs[job.name]
        self.log("info", f"{job.name} ended after {len(job.segments)} calls ({outcome})")
        self.finished.append(
            PastJob(
                job=job.name,
                parent=job.parent,
                kind="",
                model="mock-8b",
                started=job.born,
                ended=self.now,
                jct_s=self.now - job.born,
                segments=len(job.segments),
                tool_s=job.tool_s,
                queued_s=job.waited,
                service_s=sum(segment.service_s for segment in job.segments),
                prompt_tokens=job.prompt_tokens,
                cached_tokens=job.cached_tokens,
                cached_share=job.cached_tokens / max(1, job.prompt_tokens),
                output_tokens=job.output_tokens,
                preemptions=0,
                outcome=outcome,
            )
        )

    def _wait(self, job: _Job) -> None:
        job.tool_s += STEP_S
        lasted = self.now - job.since
        if self.now >= job.tool_until:
            if job.kv in ("ram", "disk"):
                self._restores += 1
            self._request(job, int(self._rng.lognormvariate(5.2, 0.8)) + 20)
            return
        if job.kv == "slot" and not job.pinned and lasted > _TO_RAM_S:
            self._move(job, "ram")
        elif job.kv == "ram" and lasted > _TO_DISK_S:
            self._move(job, "disk")

    def _move(self, job: _Job, tier: KvTier) -> None:
        self._parks += 1
        job.kv, job.slot = tier, None
        job.spans[-1].end = self.now
        job.spans.append(Span(kind="parked", start=self.now, tier=tier))
        self.log("debug", f"{job.name}: {job.tokens:,} tokens to {tier}")

    def _admit(self) -> None:
        waiting = sorted((j for j in self.jobs.values() if j.state == "queued"), key=self._rank)
        for job in waiting:
            busy = {j.slot for j in self.jobs.values() if j.state in ("prefill", "decode")}
            free = [slot for slot in range(self.slots) if slot not in busy]
            if not free:
                break
            slot = job.slot if job.slot in free else free[0]
            for other in self.jobs.values():
                if other.slot == slot and other is not job:
                    other.slot = None
                    if other.kv == "slot":
                        self._move(other, "ram") if other.spans[-1].end is None else None
                        other.kv = "ram"
            job.slot, job.kv = slot, "slot"
            self._become(job, "prefill")

    def _rank(self, job: _Job) -> tuple[int, float]:
        return job.level, -self._score(job)

    def _score(self, job: _Job) -> float:
        service = job.new / _PREFILL_S + job.wanted / _DECODE_S
        return 1 + (self.now - job.since) / max(0.1, service)

    def frame(self) -> StateFrame:
        """The present picture."""
        jobs = [self._job(job) for job in self.jobs.values()]
        slots = [self._slot(index) for index in range(self.slots)]
        queue = sorted(
            (self._queued(j) for j in self.jobs.values() if j.state == "queued"),
            key=lambda row: (row.queue, -row.score),
        )
        running = max(1, sum(slot.segment is not None for slot in slots))
        return StateFrame(
            at=self.now,
            uptime_s=self.now - self._start,
            status="paused" if self.stopped else "ready",
            scheduling_paused=self.paused,
            server=self._server(),
            jobs=jobs,
            queue=queue,
            slots=slots,
            kv=self._kv(jobs),
            memory=self._memory(),
            completion=self._completion(),
            speed=SpeedRow(
                prefill_tokens_s=_PREFILL_S,
                decode_step_s=running / (running * _DECODE_S),
                decode_tokens_s=running * _DECODE_S,
                width=self.slots,
            ),
            steps={
                "steps": float(self._totals.steps),
                "mean_ms": 31.0,
                "llama_decode_ms": 29.0,
                "kv_moves_ms": 0.6,
            },
            totals=self._totals.model_copy(),
            events=list(self._events),
        )

    def _server(self) -> ServerInfo:
        return ServerInfo(
            version=__version__,
            model="mock-8b",
            model_class="full attention",
            profile="mock",
            policy=self.policy,
            layout="unified",
            slots=self.slots,
            context=self.context,
            job_context=self.context,
            offloaded="33/33",
            pid=1,
            quant="Q4_K_M",
            parameters=8_030_000_000,
            retention="adaptive",
        )

    def _job(self, job: _Job) -> JobRow:
        waits = job.state == "waiting"
        move, move_s = self._next_move(job)
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
            since_s=self.now - job.since,
            reason=""
            if waits
            else f"Q{job.level}, ratio {self._score(job):.1f}: {job.new:,} tokens uncached",
            priority=job.priority,
            created_s=self.now - job.born,
            prompt_tokens=job.prompt_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=job.output_tokens,
            kv_bytes=job.tokens * _KV_BYTES if job.kv != "none" else 0,
            pinned=job.pinned,
            wait_p50_s=job.tool_p50 if waits else None,
            wait_p90_s=5 * job.tool_p50 if waits else None,
            next_move=move,
            next_move_s=move_s,
        )

    def _next_move(self, job: _Job) -> tuple[str, float | None]:
        if job.state != "waiting":
            return "", None
        lasted = self.now - job.since
        if job.pinned:
            return "stay: pinned", None
        if job.kv == "slot":
            return "park to RAM", max(0.0, _TO_RAM_S - lasted)
        if job.kv == "ram":
            return "move to disk", max(0.0, _TO_DISK_S - lasted)
        return "restore before it returns", max(0.0, job.tool_p50 - lasted)

    def _queued(self, job: _Job) -> SegmentRow:
        return SegmentRow(
            segment=job.segments[-1].segment,
            job=job.name,
            queue=job.level,
            prompt_tokens=job.tokens,
            cached_tokens=job.cached,
            output_tokens=0,
            waited_s=self.now - job.since,
            service_s=job.new / _PREFILL_S + job.wanted / _DECODE_S,
            score=self._score(job),
            reason=f"{job.new:,} tokens uncached, level {job.level}",
        )

    def _slot(self, index: int) -> SlotRow:
        job = next((j for j in self.jobs.values() if j.slot == index and j.kv == "slot"), None)
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
            tokens_s=_PREFILL_S / 2 if prefills else _DECODE_S if decodes else 0.0,
            quantum=job.quantum,
        )

    def _kv(self, jobs: list[JobRow]) -> KvRow:
        ram, disk = ([j for j in jobs if j.kv == tier] for tier in ("ram", "disk"))
        return KvRow(
            cells_used=min(self.context, sum(j.kv_tokens for j in jobs if j.kv == "slot")),
            cells_total=self.context,
            ram_bytes=sum(j.kv_bytes for j in ram),
            ram_budget_bytes=24 * _GIB,
            ram_states=len(ram),
            parks=self._parks,
            restores=self._restores,
            restore_failures=0,
            evictions=self._parks // 3,
            park_s=0.006 * self._parks,
            restore_s=0.007 * self._restores,
            disk_bytes=sum(j.kv_bytes for j in disk),
            disk_budget_bytes=96 * _GIB,
            disk_states=len(disk),
            disk_writes=self._parks // 4,
            disk_reads=self._restores // 5,
            prefetches=self._restores // 2,
            shared_bytes=len(ram) * 800 * _KV_BYTES,
        )

    def _memory(self) -> MemoryRow:
        seconds = self.now - self._start
        weights = int(4.9 * _GIB)
        kv = self.context * _KV_BYTES
        # Somebody else's process comes and goes every two minutes.
        others = int((2.4 if seconds % 120 < 70 else 5.6) * _GIB)
        ours = weights + kv + int(0.9 * _GIB)
        total = 24 * _GIB
        used = (ours + others) / total
        cells = sum(j.tokens for j in self.jobs.values() if j.kv == "slot") / self.context
        return MemoryRow(
            gpu="Mock GPU 24G",
            vram_total=total,
            vram_free=max(0, total - ours - others),
            vram_ours=ours,
            vram_others=others,
            gpu_load=0.9 if any(j.slot is not None for j in self.jobs.values()) else 0.02,
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

    def _completion(self) -> CompletionRow:
        times = sorted(job.jct_s for job in self.finished)
        if not times:
            return CompletionRow()
        mean, p95 = sum(times) / len(times), times[int(0.95 * (len(times) - 1))]
        return CompletionRow(
            finished=len(times), mean_s=mean, p95_s=p95, fcfs_mean_s=1.3 * mean, fcfs_p95_s=1.1 * p95
        )

    def detail(self, name: str) -> JobDetail:
        """The life of a job that is there. Raises `ActionError`."""
        job = self._known(name)
        return JobDetail(
            at=self.now,
            job=name,
            parent=job.parent,
            children=[j.name for j in self.jobs.values() if j.parent == name],
            state=job.state,
            created=job.born,
            segments=job.segments,
            spans=job.spans,
        )

    def act(self, action: Action) -> str:
        """What a server would do, roughly. Raises `ActionError`."""
        text = self._act_on_job(self._known(action.job), action) if action.job else self._act(action)
        self.log("info", f"on request: {action.text}: {text}")
        return text

    def _known(self, name: str) -> _Job:
        if name not in self.jobs:
            raise ActionError(f"there is no job {name!r}")
        return self.jobs[name]

    def _act_on_job(self, job: _Job, action: Action) -> str:
        match action.verb:
            case "pin" | "unpin":
                job.pinned = action.verb == "pin"
                return "its KV stays in its slot" if job.pinned else "its KV may be moved"
            case "park" | "drop":
                if job.state != "waiting" or job.kv != "slot":
                    raise ActionError(
                        f"{job.name} is {job.state} with its KV in {job.kv}: nothing to {action.verb}"
                    )
                self._move(job, "ram" if action.verb == "park" else "none")
                return f"{job.tokens:,} tokens {'to RAM' if action.verb == 'park' else 'dropped'}"
            case "cancel":
                self._finish(job, "cancelled")
                return "cancelled"
            case _:
                job.priority = int(action.body["priority"])
                return f"priority {job.priority:+d}"

    def _act(self, action: Action) -> str:
        match action.verb:
            case "pause scheduling" | "resume scheduling":
                self.paused = action.verb == "pause scheduling"
            case "pause server" | "resume server":
                self.stopped = action.verb == "pause server"
            case "policy":
                self.policy = str(action.body["policy"])
            case _:
                self.context, self.slots = int(action.body["size"]), int(action.body["slots"])
                for job in self.jobs.values():
                    if job.slot is not None and job.slot >= self.slots:
                        job.slot = None
        return "done"


class MockSource:
    """Frames of a mock world, in real time."""

    name = "mock"
    interval = INTERVAL_S
    transport: Transport | None = None

    def __init__(self, world: MockWorld) -> None:
        self.world = world

    async def updates(self) -> AsyncIterator[Update]:
        """A frame after each interval, the first at once."""
        yield Link("live", "mock")
        while True:
            yield self.world.frame()
            await asyncio.sleep(self.interval)
            for _ in range(max(1, round(self.interval / STEP_S))):
                self.world.step()


class MockControl:
    """The mock world's other side."""

    def __init__(self, world: MockWorld, *, readonly: bool = False) -> None:
        self.refusal = "read-only: started with --readonly" if readonly else ""
        self._world = world

    async def act(self, action: Action) -> str:
        """Does it to the mock world. Raises `ActionError`."""
        if self.refusal:
            raise ActionError(self.refusal)
        return self._world.act(action)

    async def detail(self, job: str) -> JobDetail:
        """The life of a mock job. Raises `ActionError`."""
        return self._world.detail(job)

    async def history(self, query: Query) -> Page:
        """The mock jobs that ended."""
        found = [job for job in self._world.finished if query.job in job.job]
        found.sort(key=lambda job: getattr(job, query.sort), reverse=query.order == "desc")
        jobs = found[query.offset : query.offset + query.limit]
        return Page(total=len(found), limit=query.limit, offset=query.offset, jobs=jobs)

    async def policies(self) -> list[tuple[str, str]]:
        """Two of them."""
        return [("astraea", "least remaining work first"), ("fcfs", "first come, first served")]


def _pressure(share: float) -> PressureLevel:
    if share >= _WATERMARKS["critical"]:
        return "critical"
    if share >= _WATERMARKS["high"]:
        return "high"
    return "low" if share < _WATERMARKS["low"] else "normal"
