"""Stateful-MLFQ + HRRN (after Astraea, arXiv 2512.14142), work-conserving, preemptive, by remaining work.

Every segment has the score (H + W) / C: W the waiting time of its job so far, H a head start, C the price of
its turn (`cost.price_s`): the machine time after which its job is out of the way. With H = 0 and a job of one
call this is the response ratio; the larger H, the closer it comes to least remaining work first. C counts
uncached tokens only, the restore of parked KV, and the job's predicted further calls. Queues are those of
the job, by attained token cost; they are filled from below when the first ones are empty.

A segment is overdue when its own wait exceeds (`aging_ratio` squared - 1) times its service plus three times
the work that waited with it (known to a factor of two, at least 1 s): first come, first served would have
served it by then. Overdue segments go
before all others, by arrival, and nothing takes their slots, so that none waits for ever.
"""

from bisect import bisect_left
from typing import ClassVar

from astraea_local.scheduler.cost import Conditions, price_s, service_s
from astraea_local.scheduler.job import Bound, Job, Segment
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.speeds import Speeds
from astraea_local.scheduler.width import best_width

_PATIENCE = 3.0


class Astraea(Policy):
    """The default policy."""

    name: ClassVar[str] = "astraea"
    summary: ClassVar[str] = "least remaining work first, waiting counts, preemptive"
    preempts: ClassVar[bool] = True
    heeds_priority: ClassVar[bool] = True

    @property
    def last_level(self) -> int:
        return len(self.settings.level_tokens)

    def level(self, job: Job) -> int:
        level = bisect_left(self.settings.level_tokens, job.attained)
        # A job that mostly waits for tools frees its slot soon: it counts one queue higher.
        return max(0, level - (job.bound is Bound.IO))

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        level = max(0, self.level(job) - job.priority)
        credit = self.settings.head_start_s + job.waited + segment.waited_at(now)
        return Key(level, now - credit, price_s(segment, at))

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        service, own = service_s(segment, at), segment.waited_at(now)
        if own >= self.overdue_s(segment, job, at):
            return f"overdue, by arrival: waited {own:.1f} s, needs {service:.1f} s"
        key = self.key(segment, job, now, at)
        later = segment.rest.expected
        words = f"Q{key.level}, score {key.score(now):.1f}: waited {job.waited + own:.1f} s, "
        words += f"needs {service:.1f} s ({segment.uncached} tokens uncached)"
        return f"{words}, about {later:.0f} more calls" if later >= 0.5 else words

    def overdue_s(self, segment: Segment, job: Job, at: Conditions) -> float:
        return (self.settings.aging_ratio**2 - 1) * service_s(segment, at) + _PATIENCE * at.backlog_s

    def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
        return best_width(speeds, slots, ready, context)

    def may_preempt(self, waiting: Key, running: Key, now: float) -> bool:
        return (
            waiting.level <= running.level
            and waiting.cost < running.cost
            and waiting.score(now) > self.settings.preempt_factor * running.score(now)
        )
