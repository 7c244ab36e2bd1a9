"""Stateful-MLFQ + HRRN (Astraea, arXiv 2512.14142, sections 4.1-4.3), work-conserving and preemptive.

Queues are those of the job, by attained token cost. Inside a queue the highest response ratio goes
first: (W + T) / T with W the job's accumulated waiting time and T the predicted remaining service of this
segment, in which cached tokens count nothing. Waiting raises a segment through every queue, not only out
of the last. When its own wait alone reaches `aging_ratio` squared times its service it is overdue: overdue
segments go before all others, by arrival, so that nothing passes them any more and none waits for ever.
"""

import math
from typing import ClassVar

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.base import Policy, Rank
from astraea_local.scheduler.predictor import Speeds, service_s
from astraea_local.scheduler.width import best_width

# Above every ratio that waiting can reach within the life of a server.
_OVERDUE_SCORE = 1e12


class Astraea(Policy):
    """The default policy."""

    name: ClassVar[str] = "astraea"
    preempts: ClassVar[bool] = True

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings)
        self._overdue = settings.aging_ratio**2

    def level(self, job: Job) -> int:
        return sum(job.attained > threshold for threshold in self.settings.level_tokens)

    def rank(self, segment: Segment, job: Job, now: float, speeds: Speeds) -> Rank:
        if self._is_overdue(segment, now, speeds):
            return Rank(0, -_OVERDUE_SCORE, segment.arrived, segment.id)
        score = self._ratio(segment, job, now, speeds)
        raised = int(math.log(score, self.settings.aging_ratio))
        level = max(0, self.level(job) - job.priority - raised)
        return Rank(level, -score, segment.arrived, segment.id)

    def reason(self, rank: Rank, segment: Segment, job: Job, now: float, speeds: Speeds) -> str:
        service = service_s(segment, speeds)
        if rank.score == _OVERDUE_SCORE:
            return f"overdue, by arrival: waited {segment.waited_at(now):.1f} s, needs {service:.1f} s"
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

    def _is_overdue(self, segment: Segment, now: float, speeds: Speeds) -> bool:
        service = service_s(segment, speeds)
        return segment.waited_at(now) + service >= self._overdue * service

    def _ratio(self, segment: Segment, job: Job, now: float, speeds: Speeds) -> float:
        service = service_s(segment, speeds)
        return (job.waited + segment.waited_at(now) + service) / service
