"""One made-up agent, and the speeds of the made-up machine that it runs on."""

from dataclasses import dataclass, field

from astraea_local.frame import JobState, KvTier
from astraea_local.job_detail import JobDetail, SegmentDetail, Span
from astraea_local.past_jobs import PastJob

PREFILL_S = 1800.0
"""Tokens per second; likewise the next."""
DECODE_S = 38.0
TO_RAM_S = 6.0
"""Seconds of waiting after which its KV leaves its slot; likewise the next."""
TO_DISK_S = 45.0

_LEVELS = (8_192, 32_768, 98_304)


@dataclass(slots=True)
class Agent:
    """What it has done, and where it is."""

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
        """Its queue."""
        return max(0, min(len(_LEVELS), sum(self.attained > t for t in _LEVELS) - self.priority))

    @property
    def service_s(self) -> float:
        """What its present call takes."""
        return self.new / PREFILL_S + self.wanted / DECODE_S

    def score(self, now: float) -> float:
        """Response ratio of its present call."""
        return 1 + (now - self.since) / max(0.1, self.service_s)

    def become(self, state: JobState, now: float) -> None:
        """Enters a state, which its timeline shows."""
        kind = {"waiting": "tool", "preempted": "paused"}.get(state, state)
        if self.spans and self.spans[-1].end is None:
            self.spans[-1].end = now
        if state != "done":
            tier = self.kv if state == "waiting" else None
            self.spans.append(Span.model_validate({"kind": kind, "start": now, "tier": tier}))
        self.state, self.since = state, now

    def detail(self, now: float, children: list[str]) -> JobDetail:
        """Its whole life."""
        return JobDetail(
            at=now,
            job=self.name,
            parent=self.parent,
            children=children,
            state=self.state,
            created=self.born,
            segments=self.segments,
            spans=self.spans,
        )

    def past(self, now: float, outcome: str) -> PastJob:
        """What the history keeps of it."""
        return PastJob(
            job=self.name,
            parent=self.parent,
            kind="",
            model="mock-8b",
            started=self.born,
            ended=now,
            jct_s=now - self.born,
            segments=len(self.segments),
            tool_s=self.tool_s,
            queued_s=self.waited,
            service_s=sum(segment.service_s for segment in self.segments),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            cached_share=self.cached_tokens / max(1, self.prompt_tokens),
            output_tokens=self.output_tokens,
            preemptions=0,
            outcome=outcome,
        )
