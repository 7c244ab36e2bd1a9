"""Program-level attained service (PLAS of Autellix, arXiv 2502.13965): who received least goes first."""

from typing import ClassVar

from astraea_local.scheduler.cost import Conditions, service_s
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key


class Plas(Policy):
    """Queues by the job's attained tokens, first come first served inside, preemptive.

    A call whose job has waited `aging_ratio` times what it was served goes first.
    """

    name: ClassVar[str] = "plas"
    summary: ClassVar[str] = "jobs that received least first"
    preempts: ClassVar[bool] = True

    @property
    def last_level(self) -> int:
        return len(self.settings.plas_level_tokens)

    def level(self, job: Job) -> int:
        return sum(job.attained > threshold for threshold in self.settings.plas_level_tokens)

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        return Key(self.level(job), segment.arrived, 1.0)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        waited = segment.waited_at(now)
        return f"Q{self.level(job)}: its job received {job.attained} tokens, waited {waited:.1f} s"

    def overdue_s(self, segment: Segment, job: Job, at: Conditions) -> float:
        served = job.served + service_s(segment, at)
        return max(0.0, self.settings.aging_ratio * served - job.waited)

    def may_preempt(self, waiting: Key, running: Key, now: float) -> bool:
        return waiting.level < running.level
