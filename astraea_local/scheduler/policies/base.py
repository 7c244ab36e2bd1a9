"""The interface of a policy, and the registry."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.predictor import Speeds


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """A place in the order: lower runs first."""

    level: int
    """Queue, 0 first."""
    neg_score: float
    """Minus the score inside the queue."""
    arrived: float
    """Ties go to who came first."""
    id: int

    @property
    def score(self) -> float:
        return -self.neg_score


class Policy(ABC):
    """Ranks segments, moves jobs between queues, and says how wide to run. Holds no state of its own."""

    name: ClassVar[str]
    preempts: ClassVar[bool] = False

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings

    @abstractmethod
    def rank(self, segment: Segment, job: Job, now: float, speeds: Speeds) -> Rank:
        """The segment's place among all segments, running ones included."""

    @abstractmethod
    def reason(self, rank: Rank, segment: Segment, job: Job, now: float, speeds: Speeds) -> str:
        """Why it is there, for people."""

    def level(self, job: Job) -> int:
        """The queue the job belongs to after the service it received."""
        del job
        return 0

    def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
        """Segments to run at once when `ready`, of `context` tokens on average, run or could run."""
        del speeds, ready, context
        return slots

    def may_preempt(
        self, waiting: Segment, victim: Segment, ranks: tuple[Rank, Rank], speeds: Speeds
    ) -> bool:
        """Whether `waiting` may take the slot of `victim`; `ranks` are theirs, in that order."""
        del waiting, victim, ranks, speeds
        return False
