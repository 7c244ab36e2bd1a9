"""Highest response ratio next: short calls first, until a long one has waited long enough for its length."""

from typing import ClassVar

from astraea_local.scheduler.cost import Conditions, service_s
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key


class Hrrn(Policy):
    """By (W + T) / T with the segment's own wait W and its predicted service T, no preemption."""

    name: ClassVar[str] = "hrrn"
    summary: ClassVar[str] = "highest response ratio of the call next"

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        service = service_s(segment, at)
        return Key(0, now - segment.waited_at(now) - service, service)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        ratio = self.key(segment, job, now, at).score(now)
        return (
            f"response ratio {ratio:.1f}: waited {segment.waited_at(now):.1f} s, "
            f"needs {service_s(segment, at):.1f} s"
        )
