"""The interface of a policy."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.speeds import Speeds


class Policy(ABC):
    """Gives segments their place, moves jobs between queues, says how wide to run. Keeps no state itself."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it does, one line for people."""
    preempts: ClassVar[bool] = False
    """Whether a waiting segment may ever take the slot of a running one."""
    first_level_only: ClassVar[bool] = False
    """Whether slots stay empty rather than being filled from a lower queue."""
    heeds_priority: ClassVar[bool] = False
    """Whether a job's priority moves it."""
    batches: bool = False
    """Whether it admits only when nothing runs."""
    aging_score: float = math.inf
    """Score at which a segment of the last queue takes its job back to the first."""

    def __init__(self, settings: SchedulerSettings, predictor: Predictor) -> None:
        self.settings = settings
        self.predictor = predictor

    @abstractmethod
    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        """The segment's place among all segments; the same at any `now` as long as nothing happens to it."""

    @abstractmethod
    def reason(self, segment: Segment, job: Job, now: float, at: Conditions) -> str:
        """Why it is there, for people."""

    @property
    def last_level(self) -> int:
        """The lowest queue."""
        return 0

    def level(self, job: Job) -> int:
        """The queue the job belongs to, for display."""
        return 0

    def overdue_s(self, segment: Segment, job: Job, at: Conditions) -> float:
        """Own waiting after which the segment goes before all others, by arrival."""
        return math.inf

    def ended(self, segment: Segment, job: Job, now: float, at: Conditions) -> None:  # noqa: B027
        """A segment ended and its job begins to wait for a tool: the place to move it between queues."""

    def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
        """Segments to run at once when `ready`, of `context` tokens on average, run or could run."""
        return slots

    def may_preempt(self, waiting: Key, running: Key, now: float) -> bool:
        """Whether a segment of key `waiting` may take the slot of one of key `running` after its quantum."""
        return False
