"""What could be reached at best: shortest remaining job first, with true lengths. Simulator only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from astraea_local.bench.workloads import SimJob
from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, prefill_s
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies import Policy
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.speeds import Speeds
from astraea_local.scheduler.width import best_width


@dataclass(slots=True)
class Truth:
    """A job and the call it is in."""

    job: SimJob
    call: int = 0


class Oracle(Policy):
    """By the true remaining work of the job, preemptive."""

    name: ClassVar[str] = "oracle"
    summary: ClassVar[str] = "true remaining work first"
    preempts: ClassVar[bool] = True

    def __init__(
        self, settings: SchedulerSettings, predictor: Predictor, truths: Mapping[str, Truth]
    ) -> None:
        super().__init__(settings, predictor)
        self._truths = truths

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        return Key(0, self._work(segment, job, at), 1.0)

    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        return f"its job needs {self._work(segment, job, at):.1f} s more"

    def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
        return best_width(speeds, slots, ready, context)

    def may_preempt(self, waiting: Key, running: Key, now: float) -> bool:
        return waiting.since < running.since

    def _work(self, segment: Segment, job: Job, at: Conditions) -> float:
        truth = self._truths[job.id]
        calls = truth.job.calls[truth.call :]
        context = segment.context
        step = at.speeds.decode_step(at.width, at.width * context) / at.width
        work = prefill_s(segment, at.speeds) + (calls[0].output_tokens - segment.output) * step
        for call in calls[1:]:
            context += call.new_tokens + call.output_tokens
            step = at.speeds.decode_step(at.width, at.width * context) / at.width
            work += at.speeds.prefill(call.new_tokens, context) + call.output_tokens * step
        return work
