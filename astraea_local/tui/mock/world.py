"""The made-up agents and their machine, and what time does to them."""

import random
from collections import deque

from astraea_local.frame import Event, EventLevel, KvTier, StateFrame, Totals
from astraea_local.job_detail import SegmentDetail, Span, WaitDetail
from astraea_local.past_jobs import PastJob
from astraea_local.tui.mock.agent import DECODE_S, PREFILL_S, TO_DISK_S, TO_RAM_S, Agent
from astraea_local.tui.mock.picture import picture

STEP_S = 0.25

_SLOTS = 6
_CONTEXT = 98_304
_TOOLS = ("bash:pytest", "bash:grep", "read_file", "edit_file", "web_search", "bash:cargo", "browser")
_NAMES = ("coder", "reviewer", "planner", "tests", "docs", "research", "refactor")


class MockWorld:
    """All agents and the machine; `step` lets `STEP_S` seconds pass."""

    def __init__(self, seed: int = 1, *, agents: int = 24, start: float = 1.8e9) -> None:
        """`agents`: how many there are at a time, about. `start`: Unix time of the first frame."""
        self.start = self.now = start
        self.jobs: dict[str, Agent] = {}
        self.finished: list[PastJob] = []
        self.policy = "astraea"
        self.paused = False
        self.stopped = False
        self.slots = _SLOTS
        self.context = _CONTEXT
        self.events: deque[Event] = deque(maxlen=200)
        self.totals = Totals()
        self.parks = self.restores = 0
        self._agents = agents
        self._rng = random.Random(seed)  # noqa: S311
        self._names = 0
        self._segments = 0
        self._logged = 0
        self.log("info", "mock server: nothing of this is real")
        for _ in range(max(1, agents * 2 // 3)):
            self._arrive()

    def frame(self) -> StateFrame:
        """The present picture."""
        return picture(self)

    def log(self, level: EventLevel, text: str) -> None:
        """A line of the event log."""
        self._logged += 1
        self.events.append(Event(id=self._logged, at=self.now, level=level, text=text))

    def step(self) -> None:
        """A quarter of a second."""
        self.now += STEP_S
        if len(self.jobs) < self._agents and self._rng.random() < STEP_S * self._agents / 12:
            self._arrive()
        for job in list(self.jobs.values()):
            self._advance(job)
        if not self.paused and not self.stopped:
            self._admit()

    def finish(self, job: Agent, outcome: str) -> None:
        """Ends it; it is history then."""
        job.become("done", self.now)
        del self.jobs[job.name]
        self.log("info", f"{job.name} ended after {len(job.segments)} calls ({outcome})")
        self.finished.append(job.past(self.now, outcome))

    def move(self, job: Agent, tier: KvTier) -> None:
        """Takes the KV of a waiting agent out of its slot, or further."""
        self.parks += 1
        job.kv, job.slot = tier, None
        job.spans[-1].end = self.now
        job.spans.append(Span(kind="parked", start=self.now, tier=tier))
        self.log("debug", f"{job.name}: {job.tokens:,} tokens to {tier}")

    def _arrive(self) -> None:
        self._names += 1
        parent = None
        if self.jobs and self._rng.random() < 0.2:
            parent = self._rng.choice([job.parent or job.name for job in self.jobs.values()])
        name = f"{self._rng.choice(_NAMES)}-{self._names}"
        job = Agent(name, parent, calls=self._rng.randint(3, 14), born=self.now)
        self.jobs[name] = job
        self._request(job, self._rng.randint(800, 6000))

    def _request(self, job: Agent, new: int) -> None:
        job.cached = 0 if job.kv == "none" else job.tokens
        job.new = new + job.tokens - job.cached
        job.tokens += new
        job.wanted = max(8, int(self._rng.lognormvariate(4.6, 0.9)))
        job.output = job.done = job.quantum = 0
        job.prompt_tokens += job.tokens
        job.cached_tokens += job.cached
        self.totals.prompt_tokens += job.tokens
        self.totals.cached_tokens += job.cached
        wait = None
        if job.segments and job.spans:
            wait = WaitDetail(
                tool=job.tool,
                start=job.since,
                seconds=self.now - job.since,
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
                predicted_service_s=job.new / PREFILL_S + 100 / DECODE_S,
                wait=wait,
            )
        )
        job.become("queued", self.now)

    def _advance(self, job: Agent) -> None:
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

    def _prefill(self, job: Agent) -> None:
        part = min(job.new - job.done, int(PREFILL_S * STEP_S * self._rng.uniform(0.4, 1.0)) + 1)
        self._receive(job, part)
        self.totals.prefilled_tokens += part
        job.done += part
        if job.done >= job.new:
            job.become("decode", self.now)

    def _decode(self, job: Agent) -> None:
        part = min(job.wanted - job.output, max(1, int(DECODE_S * STEP_S * self._rng.uniform(0.7, 1.1))))
        self._receive(job, part)
        self.totals.decoded_tokens += part
        job.output += part
        job.output_tokens += part
        job.tokens += part
        job.segments[-1].output_tokens = job.output
        if job.output >= job.wanted:
            self._answer(job)

    def _receive(self, job: Agent, tokens: int) -> None:
        job.attained += tokens
        job.quantum += tokens
        job.segments[-1].service_s += STEP_S
        self.totals.steps += 1

    def _answer(self, job: Agent) -> None:
        self.totals.segments_finished += 1
        segment = job.segments[-1]
        segment.ended, segment.outcome = self.now, "stop"
        if len(job.segments) >= job.calls:
            self.finish(job, "stop")
            return
        job.tool = self._rng.choice(_TOOLS)
        job.tool_p50 = 0.5 + 2.5 * _TOOLS.index(job.tool)
        job.tool_until = self.now + job.tool_p50 * self._rng.lognormvariate(0.0, 1.0)
        job.become("waiting", self.now)

    def _wait(self, job: Agent) -> None:
        job.tool_s += STEP_S
        lasted = self.now - job.since
        if self.now >= job.tool_until:
            if job.kv in ("ram", "disk"):
                self.restores += 1
            self._request(job, int(self._rng.lognormvariate(5.2, 0.8)) + 20)
            return
        if job.kv == "slot" and not job.pinned and lasted > TO_RAM_S:
            self.move(job, "ram")
        elif job.kv == "ram" and lasted > TO_DISK_S:
            self.move(job, "disk")

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
                        if other.spans[-1].end is None:
                            self.move(other, "ram")
                        other.kv = "ram"
            job.slot, job.kv = slot, "slot"
            job.become("prefill", self.now)

    def _rank(self, job: Agent) -> tuple[int, float]:
        return job.level, -job.score(self.now)
