"""First come, first served: what other local servers do; the baseline."""

from typing import ClassVar

from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy, Rank
from astraea_local.scheduler.predictor import Speeds


class Fcfs(Policy):
    """By arrival of the segment, all slots, no preemption."""

    name: ClassVar[str] = "fcfs"

    def rank(self, segment: Segment, job: Job, now: float, speeds: Speeds) -> Rank:
        del job, now, speeds
        return Rank(0, 0.0, segment.arrived, segment.id)

    def reason(self, rank: Rank, segment: Segment, job: Job, now: float, speeds: Speeds) -> str:
        del rank, job, speeds
        return f"in order of arrival, waited {segment.waited_at(now):.1f} s"
