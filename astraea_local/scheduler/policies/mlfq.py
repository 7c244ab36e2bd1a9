"""Multi-level feedback queues over calls: every call starts on top and sinks as it receives tokens."""

from typing import ClassVar

from astraea_local.scheduler.cost import Conditions
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key


class Mlfq(Policy):
    """By the tokens the call itself has received, first come first served inside a level, preemptive.

    Knows neither jobs nor predictions; a call that sinks gives way to any above it after its quantum.
    """

    name: ClassVar[str] = "mlfq"
    summary: ClassVar[str] = "calls sink through queues as they receive tokens"
    preempts: ClassVar[bool] = True

    @property
    def last_level(self) -> int:
        return len(self.settings.paper_quota_tokens)

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        level = sum(segment.received > quota for quota in self.settings.paper_quota_tokens)
        return Key(level, segment.arrived, 1.0)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        level = self.key(segment, job, now, at).level
        return f"Q{level} after {segment.received} tokens, waited {segment.waited_at(now):.1f} s"

    def may_preempt(self, waiting: Key, running: Key, now: float) -> bool:
        return waiting.level < running.level
