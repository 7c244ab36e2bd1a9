"""Figures of completed jobs."""

import pytest

from astraea_local.engine.completion import Completions
from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.scheduler import NewSegment, Scheduler, View
from astraea_local.scheduler.speeds import Speeds


class Served:
    """A scheduler with one slot, and the completions of what it serves."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(SchedulerSettings(), 1)
        self.completions = Completions(1)

    def arrives(self, now: float, job: str, segment: int) -> None:
        self.scheduler.submit(now, NewSegment(segment, job, prompt_tokens=10, max_output=10))
        self.completions.arrived(now, job, segment)

    def serve(self, start: float, end: float, segment: int) -> None:
        self.scheduler.plan(start, View(Speeds()))
        self.scheduler.started(start, segment, 0)
        self.completions.ended(end, self.scheduler.finish(end, segment))

    def look(self, now: float) -> tuple[int, float, float | None]:
        row = self.completions.look(now, self.scheduler.jobs.values())
        return row.finished, row.mean_s, row.fcfs_mean_s


def test_both_means_are_of_the_same_jobs() -> None:
    served = Served()
    served.arrives(0.0, "long", 1)
    served.arrives(1.0, "short", 2)
    served.serve(1.0, 2.0, 2)
    served.scheduler.end_job("short")
    assert served.look(2.0) == (1, 0.0, None)  # whether it would have waited is not known yet
    served.serve(2.0, 12.0, 1)
    served.scheduler.end_job("long")
    finished, mean_s, fcfs_s = served.look(12.0)
    assert finished == 2
    assert mean_s == pytest.approx((1 + 12) / 2)
    assert fcfs_s == pytest.approx((10 + 10) / 2)


def test_a_job_is_counted_once_until_it_comes_back() -> None:
    served = Served()
    served.arrives(0.0, "a", 1)
    served.serve(0.0, 1.0, 1)
    served.scheduler.end_job("a")
    assert served.look(1.0)[0] == served.look(2.0)[0] == 1
    served.arrives(3.0, "a", 2)
    served.serve(3.0, 4.0, 2)
    assert served.look(4.0)[0] == 1
    served.scheduler.end_job("a")
    assert served.look(5.0) == (2, 1.0, 1.0)


def test_jobs_that_are_forgotten_are_over() -> None:
    served = Served()
    served.arrives(0.0, "a", 1)
    served.serve(0.0, 1.0, 1)
    served.completions.over(served.scheduler.forget(100.0))
    assert served.look(100.0) == (1, 1.0, 1.0)
