"""First come, first served: what other local servers do; the baseline."""

from typing import ClassVar

from astraea_local.scheduler.cost import Conditions
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key


class Fcfs(Policy):
    """By arrival of the segment, all slots, no preemption."""

    name: ClassVar[str] = "fcfs"
    summary: ClassVar[str] = "first come, first served"

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        return Key(0, segment.arrived, 1.0)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        return f"in order of arrival, waited {segment.waited_at(now):.1f} s"
