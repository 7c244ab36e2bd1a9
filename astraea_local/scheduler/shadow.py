"""What first come, first served would have needed for the same jobs: an estimate that runs along.

A shadow machine with as many slots serves the same segments in the order in which they come to it. Its loop
is closed: a job's next segment comes when its shadow has ended the last one and its tool has taken as long as
it really did. Assumed is that a segment needs a slot for as long there as it did here. So the estimate
leaves out that other neighbours make steps longer or shorter, and that first come, first served would have
found other KV in place. Pauses do not count as service.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Completed:
    """A job that ended, here and on the shadow machine."""

    job: str
    actual_s: float
    """Its first arrival to its last end, seconds."""
    fcfs_s: float
    """The same on the shadow machine."""


@dataclass(slots=True, eq=False)
class _Segment:
    round: "_Round"
    offset: float
    """Its arrival after the first of its round."""
    service: float | None = None
    """Slot time; None while it really runs or waits."""
    ended: float | None = None
    """On the shadow machine."""


@dataclass(slots=True, eq=False)
class _Round:
    """Segments of one job that overlap; mostly a single one."""

    job: "_Job"
    began: float
    wait: float
    """Tool wait before it."""
    segments: dict[int, _Segment] = field(default_factory=dict)
    ended: float | None = None
    shadow_began: float | None = None
    """None while the shadow of the round before it has not ended."""

    @property
    def shadow_ended(self) -> float | None:
        """None while a segment runs, here or on the shadow machine."""
        ends = [s.ended for s in self.segments.values() if s.ended is not None]
        return max(ends) if self.ended is not None and len(ends) == len(self.segments) else None


@dataclass(slots=True, eq=False)
class _Job:
    name: str
    created: float
    rounds: deque[_Round] = field(default_factory=deque)
    """The latest one, and those before it whose shadows have not ended."""
    over: bool = False


class Shadow:
    """Is told of arrivals and ends as they really happen, and tells what has become certain.

    Times are seconds on one clock that never goes back.
    """

    def __init__(self, slots: int) -> None:
        self._free = [0.0] * slots
        """When each slot of the shadow machine is free again; a heap."""
        self._jobs: dict[str, _Job] = {}
        self._running: dict[int, _Segment] = {}
        self._queue: list[tuple[float, int, _Segment]] = []
        """Segments by their arrival at the shadow machine; a heap."""

    def arrived(self, now: float, job_name: str, segment: int) -> None:
        """A segment arrived; the first one of a name, or the first after `over`, begins a job."""
        job = self._jobs.get(job_name)
        if job is None:
            job = self._jobs[job_name] = _Job(job_name, now)
            job.rounds.append(_Round(job, now, 0.0, shadow_began=now))
        job.over = False
        last = job.rounds[-1]
        if last.ended is not None:
            last = _Round(job, now, now - last.ended)
            job.rounds.append(last)
            self._settle(job)
        entry = last.segments[segment] = self._running[segment] = _Segment(last, now - last.began)
        self._enqueue(segment, entry)

    def ended(self, now: float, segment: int, service_s: float) -> None:
        """A segment ended after so much time in a slot."""
        entry = self._running.pop(segment)
        entry.service = service_s
        if all(s.service is not None for s in entry.round.segments.values()):
            entry.round.ended = now

    def over(self, job_name: str) -> None:
        """No further segment of the job will come; a name that is not known is ignored."""
        if job_name in self._jobs:
            self._jobs[job_name].over = True

    def advance(self, now: float) -> list[Completed]:
        """Jobs whose completion on the shadow machine has become certain, in no particular order.

        A segment is served there when nothing can come before it any more, so the answer lags behind by
        the time that segments take, and is the same whatever order the ends were told in.
        """
        horizon = min((self._next_arrival(job, now) for job in self._jobs.values()), default=now)
        horizon = min(now, horizon)
        while self._queue and self._queue[0][0] <= horizon and self._queue[0][-1].service is not None:
            arrival, _id, entry = heapq.heappop(self._queue)
            assert entry.service is not None
            start = max(arrival, self._free[0])
            entry.ended = start + entry.service
            heapq.heapreplace(self._free, entry.ended)
            self._settle(entry.round.job)
            horizon = min(horizon, self._next_arrival(entry.round.job, now))
        return [done for job in list(self._jobs.values()) if (done := self._completed(job)) is not None]

    def _next_arrival(self, job: _Job, now: float) -> float:
        """The earliest moment at which a segment of the job that is not known yet may reach the shadow.

        Segments that wait for a shadow to end come after it, so they need not be looked at.
        """
        last = job.rounds[-1]
        if last.shadow_began is None or job.over:
            return now
        if last.ended is None:
            return last.shadow_began + (now - last.began)
        ended = last.shadow_ended
        return now if ended is None else ended + (now - last.ended)

    def _settle(self, job: _Job) -> None:
        """Lets the next round begin when the shadow of the first has ended."""
        while len(job.rounds) > 1 and (ended := job.rounds[0].shadow_ended) is not None:
            job.rounds.popleft()
            following = job.rounds[0]
            following.shadow_began = ended + following.wait
            for number, entry in following.segments.items():
                self._enqueue(number, entry)

    def _enqueue(self, number: int, entry: _Segment) -> None:
        began = entry.round.shadow_began
        if began is not None:
            heapq.heappush(self._queue, (began + entry.offset, number, entry))

    def _completed(self, job: _Job) -> Completed | None:
        last = job.rounds[-1]
        ended = last.shadow_ended
        if not job.over or ended is None or last.ended is None:
            return None
        del self._jobs[job.name]
        return Completed(job.name, last.ended - job.created, ended - job.created)
