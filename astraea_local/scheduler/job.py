"""Jobs, their segments and their tool waits, as the scheduler knows them."""

import enum
from dataclasses import dataclass, field


class SegmentState(enum.StrEnum):
    """Where a segment is."""

    WAITING = "waiting"
    RUNNING = "running"


@dataclass(slots=True)
class Segment:
    """One LLM call. Token counts grow as the engine reports work; times are seconds."""

    id: int
    job: str
    prompt_tokens: int
    max_output: int
    arrived: float
    predicted_output: float
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
    quantum: int = 0
    """Tokens received since it was admitted."""
    preemptions: int = 0

    @property
    def context(self) -> int:
        """Tokens of prompt and output so far."""
        return self.prompt_tokens + self.output

    @property
    def uncached(self) -> int:
        """Tokens still to be prefilled before the next one can be sampled; at least one."""
        known = self.computed if self.state is SegmentState.RUNNING else self.cached
        return max(1, self.context - known)

    def waited_at(self, now: float) -> float:
        """Queue time until `now`."""
        return self.waited + (now - self.since if self.state is SegmentState.WAITING else 0.0)


@dataclass(slots=True)
class Job:
    """One agent run: its segments share this record."""

    id: str
    created: float
    parent: str | None = None
    priority: int = 0
    """Added to the level with opposite sign: +1 puts the job one queue higher."""
    attained: int = 0
    """Token cost received: prefilled + decoded."""
    waited: float = 0.0
    """Queue time of its finished segments, seconds."""
    segments: int = 0
    """Finished segments."""
    output_tokens: int = 0
    """Output of its finished segments."""
    active: set[int] = field(default_factory=set)
    since: float = 0.0
    """When it last began to wait for its client."""
    final: bool = False
    """The client said that no further request will come."""
    reason: str = ""
