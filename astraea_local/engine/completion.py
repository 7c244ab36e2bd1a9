"""Completion times of the jobs that ended of late, beside the estimate for first come, first served."""

from collections import deque
from collections.abc import Iterable

import numpy as np

from astraea_local.frame import CompletionRow
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.shadow import Completed, Shadow

_WINDOW = 1000


class Completions:
    """Is told of segments; `row` gives the figures."""

    def __init__(self, slots: int) -> None:
        self._shadow = Shadow(slots)
        self._recent: deque[Completed] = deque(maxlen=_WINDOW)
        self._open: set[str] = set()
        """Jobs that have not been counted as finished."""
        self._finished = 0

    def arrived(self, now: float, job: str, segment: int) -> None:
        """A segment was submitted."""
        self._open.add(job)
        self._shadow.arrived(now, job, segment)

    def ended(self, now: float, segment: Segment) -> None:
        """A segment left the scheduler."""
        waited = segment.waited_at(now)
        self._shadow.ended(now, segment.id, max(0.0, now - segment.arrived - waited))

    def over(self, jobs: Iterable[str]) -> None:
        """No further segment of these jobs will come."""
        for job in jobs:
            if job in self._open:
                self._open.remove(job)
                self._finished += 1
                self._shadow.over(job)

    def look(self, now: float, jobs: Iterable[Job]) -> CompletionRow:
        """The figures after jobs that said they are over, or are taken for it, have been counted.

        Means and percentiles are of the latest jobs whose estimate has become certain, so that both are of
        the same jobs; `finished` counts them all.
        """
        self.over([j.id for j in jobs if not j.active and (j.final or j.presumed_over)])
        self._recent.extend(self._shadow.advance(now))
        if not self._recent:
            return CompletionRow(finished=self._finished)
        actual = np.array([c.actual_s for c in self._recent])
        fcfs = np.array([c.fcfs_s for c in self._recent])
        return CompletionRow(
            finished=self._finished,
            mean_s=float(actual.mean()),
            p95_s=float(np.quantile(actual, 0.95)),
            fcfs_mean_s=float(fcfs.mean()),
            fcfs_p95_s=float(np.quantile(fcfs, 0.95)),
        )
