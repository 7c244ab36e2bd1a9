"""Shortest job first, a call being the job: the least predicted service goes first."""

from typing import ClassVar

from astraea_local.scheduler.cost import Conditions, service_s
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key


class Sjf(Policy):
    """By predicted service of the segment, no preemption; long ones may starve."""

    name: ClassVar[str] = "sjf"
    summary: ClassVar[str] = "shortest predicted call first"

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        return Key(0, service_s(segment, at), 1.0)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        return f"shortest first: needs {service_s(segment, at):.1f} s ({segment.uncached} tokens uncached)"
