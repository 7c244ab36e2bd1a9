"""Stateful-MLFQ + HRRN (Astraea, arXiv 2512.14142, sections 4.1-4.3), work-conserving and preemptive.

Queues are those of the job, by attained token cost. Inside a queue the highest response ratio goes
first: (W + T) / T with W the job's accumulated waiting time and T the predicted remaining service of this
segment, in which cached tokens count nothing. Waiting raises a segment through every queue, not only out
of the last; beyond a ratio that outweighs every queue it is overdue, and the overdue go by arrival. So
nothing that comes later passes it any more, and no segment waits for ever.
"""

import math
from typing import ClassVar

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy, Rank
from astraea_local.scheduler.predictor import Speeds, service_s
from astraea_local.scheduler.width import best_width


class Astraea(Policy):
    """The default policy."""

    name: ClassVar[str] = "astraea"
    preempts: ClassVar[bool] = True

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings)
        self._overdue = settings.aging_ratio ** (len(settings.level_tokens) + 1)

    def level(self, job: Job) -> int:
        return sum(job.attained > threshold for threshold in self.settings.level_tokens)

    def rank(self, segment: Segment, job: Job, now: float, speeds: Speeds) -> Rank:
        score = self._ratio(segment, job, now, speeds)
        if score >= self._overdue:
            return Rank(0, -self._overdue, segment.arrived, segment.id)
        raised = int(math.log(score, self.settings.aging_ratio))
        level = max(0, self.level(job) - job.priority - raised)
        return Rank(level, -score, segment.arrived, segment.id)

    def reason(self, rank: Rank, segment: Segment, job: Job, now: float, speeds: Speeds) -> str:
        service = service_s(segment, speeds)
        words = f"Q{rank.level}, ratio {rank.score:.1f}: waited {job.waited + segment.waited_at(now):.1f} s"
        words += f", needs {service:.1f} s ({segment.uncached} tokens uncached)"
        own = self.level(job)
        return f"{words}, raised from Q{own}" if rank.level < own else words

    def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
        return best_width(speeds, slots, ready, context)

    def may_preempt(
        self, waiting: Segment, victim: Segment, ranks: tuple[Rank, Rank], speeds: Speeds
    ) -> bool:
        first, second = ranks
        return (
            victim.quantum >= self.settings.min_quantum_tokens
            and first.level <= second.level
            and first.score > self.settings.preempt_factor * second.score
            and service_s(waiting, speeds) < service_s(victim, speeds)
        )

    def _ratio(self, segment: Segment, job: Job, now: float, speeds: Speeds) -> float:
        service = service_s(segment, speeds)
        return (job.waited + segment.waited_at(now) + service) / service
