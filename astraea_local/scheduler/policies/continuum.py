"""Continuum (arXiv 2511.02230): jobs in order of arrival, those that return in time first.

At each tool call a job's KV is promised to stay for the time-to-live that gains most in expectation:
P(returned within it) x (what a return costs otherwise) - the time it is held (`retention/ttl.py`).
"""

from typing import ClassVar

from astraea_local.scheduler.cost import Conditions
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.retention import best_ttl


class Continuum(Policy):
    """Preempted calls and returns within their time-to-live first, then by arrival of the job."""

    name: ClassVar[str] = "continuum"
    summary: ClassVar[str] = "jobs by arrival, those that return in time first"

    @property
    def last_level(self) -> int:
        return 1

    def level(self, job: Job) -> int:
        return 0 if job.kept_until > job.since else 1

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        returned = job.segments > 0 and segment.arrived <= job.kept_until
        in_time = returned or segment.preemptions > 0
        return Key(0 if in_time else 1, job.created, 1.0)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        waited = f"waited {segment.waited_at(now):.1f} s"
        if self.key(segment, job, now, at).level == 0:
            return f"back within its time-to-live, {waited}"
        return f"in order of its job's arrival, {waited}"

    def ended(self, segment: Segment, job: Job, now: float, at: Conditions) -> None:
        # Out of order, the job would have to queue again: taken for what its calls have queued on average.
        queued = (job.waited + segment.waited_at(now)) / (job.segments + 1)
        missed = queued + at.speeds.prefill(segment.context, 0)
        job.kept_until = now + best_ttl(self.predictor.wait(job), missed)
