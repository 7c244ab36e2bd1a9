"""Jobs, their segments and their tool waits, as the scheduler knows them."""

import enum
from collections import Counter
from dataclasses import dataclass, field

from astraea_local.scheduler.distribution import Distribution


class SegmentState(enum.StrEnum):
    """Where a segment is."""

    WAITING = "waiting"
    RUNNING = "running"


class Bound(enum.StrEnum):
    """What a job spends its time on, by its behaviour so far."""

    UNKNOWN = "-"
    IO = "io"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class Rest:
    """What a job is expected to need after its present segment."""

    segments: float
    """As they count for its price: between their mean and `Survival.effort`."""
    output: float
    """Tokens to decode in each of them."""
    growth: float
    """Tokens to prefill in each of them."""
    wait: Distribution
    """Seconds in a tool before each of them."""
    expected: float
    """How many there are on average; for people."""


@dataclass(slots=True, eq=False)
class Segment:
    """One LLM call. Token counts grow as the engine reports work; times are seconds."""

    id: int
    job: str
    prompt_tokens: int
    max_output: int
    arrived: float
    expected_output: Distribution
    """Predicted length of the whole output, tokens."""
    rest: Rest
    """What its job needs afterwards, as predicted when it arrived."""
    cached: int = 0
    """Leading tokens whose KV exists, in a sequence or parked."""
    restore_s: float = 0.0
    """Predicted time to bring parked KV back."""
    output: int = 0
    computed: int = 0
    """Leading tokens whose KV is in the segment's own sequence; 0 while it waits."""
    state: SegmentState = SegmentState.WAITING
    since: float = 0.0
    """Time of the last change of `state`."""
    waited: float = 0.0
    """Queue time before `since`."""
    received: int = 0
    """Tokens computed for it, all its admissions together."""
    quantum: int = 0
    """Tokens received since it was admitted."""
    preemptions: int = 0
    urgent: bool = False
    """It was admitted because it had waited too long: nothing takes its slot."""

    @property
    def context(self) -> int:
        """Tokens of prompt and output so far."""
        return self.prompt_tokens + self.output

    @property
    def uncached(self) -> int:
        """Tokens still to be prefilled before the next one can be sampled; at least one."""
        known = self.computed if self.state is SegmentState.RUNNING else self.cached
        return max(1, self.prompt_tokens + self.output - known)

    @property
    def remaining_output(self) -> float:
        """Expected tokens still to come, given those that came; at least one."""
        rest = self.expected_output.remaining(self.output)
        return max(1.0, min(rest, float(self.max_output - self.output)))

    def waited_at(self, now: float) -> float:
        """Queue time until `now`."""
        return self.waited + (now - self.since if self.state is SegmentState.WAITING else 0.0)


@dataclass(slots=True, eq=False)
class Job:
    """One agent run: its segments share this record."""

    id: str
    created: float
    parent: str | None = None
    kind: str = ""
    """Family of jobs that begin alike (same tools and instructions); its history predicts this one."""
    priority: int = 0
    """Added to the level with opposite sign: +1 puts the job one queue higher."""
    level: int = 0
    """Its queue, for policies that move jobs between queues step by step."""
    attained: int = 0
    """Token cost received: prefilled + decoded."""
    served: float = 0.0
    """Slot time of its segments, seconds."""
    waited: float = 0.0
    """Queue time of its finished segments, seconds."""
    tool_s: float = 0.0
    """Time it spent in tools, seconds."""
    tools: Counter[str] = field(default_factory=Counter)
    """How often it called which tool."""
    tool: str = ""
    """The tool it is waiting for, when its name is known, else the last known one."""
    segments: int = 0
    """Finished segments."""
    prompt_tokens: int = 0
    """Prompts of all its segments."""
    cached_tokens: int = 0
    """Of those, what needed no prefill when a segment first got a slot."""
    output_tokens: int = 0
    """Output of its finished segments."""
    context: int = 0
    """Tokens of its last finished segment, output included."""
    active: set[int] = field(default_factory=set)
    since: float = 0.0
    """When it last began to wait for its client."""
    kept_until: float = 0.0
    """Until when its KV was promised to stay, for policies that promise."""
    final: bool = False
    """The client said that no further request will come."""
    presumed_over: bool = False
    """It has been silent for so long that it was counted as over."""
    reason: str = ""
    note: str = ""
    """What its user should know of its requests."""

    @property
    def io_share(self) -> float:
        """Share (0..1) of tools in the time that it was not queued; 0 before its first tool."""
        busy = self.tool_s + self.served
        return self.tool_s / busy if busy > 0 else 0.0

    @property
    def bound(self) -> Bound:
        """Whether it mostly waits for tools or mostly computes."""
        if self.segments < 2:
            return Bound.UNKNOWN
        return Bound.IO if self.io_share > 0.5 else Bound.COMPUTE
