"""Astraea as printed (arXiv 2512.14142, Algorithm 1 and sections 4.1-4.3), to reproduce its result.

Strict-priority queues; a call that costs more tokens than its queue's quota moves its job one queue down, one
that yields to a tool before moves it one up; in the last queue a job whose response ratio reaches the aging
threshold returns to the first. Inside a queue the highest (W + T) / T goes first, W the job's accumulated
wait. Segments are admitted from the first non-empty queue and run to their end. Taken literally the paper
fills no slot before every call of a batch has ended; `paper_refill` decides. It prints no values for quotas
and threshold: docs/scheduling.md has the sweep that chose the defaults.
"""

from typing import ClassVar

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, service_s
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import Key


class AstraeaPaper(Policy):
    """No preemption, no filling from lower queues."""

    name: ClassVar[str] = "astraea_paper"
    summary: ClassVar[str] = "Astraea as published: MLFQ and HRRN, batch by batch"
    first_level_only: ClassVar[bool] = True

    def __init__(self, settings: SchedulerSettings, predictor: Predictor) -> None:
        super().__init__(settings, predictor)
        self.aging_score = settings.paper_aging_ratio
        self.batches = not settings.paper_refill

    @property
    def last_level(self) -> int:
        return len(self.settings.paper_quota_tokens)

    def level(self, job: Job) -> int:
        return job.level

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        service = service_s(segment, at)
        return Key(job.level, now - job.waited - segment.waited_at(now) - service, service)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        ratio = self.key(segment, job, now, at).score(now)
        waited = job.waited + segment.waited_at(now)
        return f"Q{job.level}, ratio {ratio:.1f}: its job waited {waited:.1f} s"

    def ended(self, segment: Segment, job: Job, now: float, at: Conditions) -> None:
        quotas = self.settings.paper_quota_tokens
        if job.level < len(quotas) and segment.received > quotas[job.level]:
            job.level += 1
        elif job.level > 0:
            job.level -= 1
