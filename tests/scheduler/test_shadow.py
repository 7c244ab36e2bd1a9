"""The shadow of first come, first served: exact on its assumptions, and told piece by piece."""

import heapq
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.scheduler.shadow import Completed, Shadow


@dataclass(frozen=True)
class Agent:
    """When it comes, and its calls: (service, tool wait after it)."""

    arrival: float
    calls: tuple[tuple[float, float], ...]

    @property
    def alone(self) -> float:
        return sum(service + wait for service, wait in self.calls) - self.calls[-1][1]


def fcfs(agents: list[Agent], slots: int) -> list[float]:
    """Completion times under first come, first served, by simulating it from beginning to end."""
    free = [0.0] * slots
    queue = [(agent.arrival, index, 0) for index, agent in enumerate(agents)]
    heapq.heapify(queue)
    done = [0.0] * len(agents)
    while queue:
        arrival, index, number = heapq.heappop(queue)
        service, wait = agents[index].calls[number]
        end = max(arrival, free[0]) + service
        heapq.heapreplace(free, end)
        if number + 1 < len(agents[index].calls):
            heapq.heappush(queue, (end + wait, index, number + 1))
        else:
            done[index] = end - agents[index].arrival
    return done


def live(agents: list[Agent], slots: int, pick: random.Random, ids: list[int]) -> list[Completed]:
    """Runs the agents on a server that serves in random order, with a shadow that is told of it."""
    shadow = Shadow(slots)
    number_of = iter(ids)
    events = [(agent.arrival, index, "comes", 0, 0) for index, agent in enumerate(agents)]
    heapq.heapify(events)
    waiting: list[tuple[int, int, int]] = []
    free = slots
    found: list[Completed] = []
    now = 0.0
    while events:
        now, index, what, call, segment = heapq.heappop(events)
        if what == "comes":
            segment = next(number_of)
            shadow.arrived(now, f"agent{index}", segment)
            waiting.append((index, call, segment))
        else:
            free += 1
            service, wait = agents[index].calls[call]
            shadow.ended(now, segment, service)
            if call + 1 < len(agents[index].calls):
                heapq.heappush(events, (now + wait, index, "comes", call + 1, 0))
            else:
                shadow.over(f"agent{index}")
        while free and waiting:
            free -= 1
            index, call, segment = waiting.pop(pick.randrange(len(waiting)))
            heapq.heappush(events, (now + agents[index].calls[call][0], index, "ends", call, segment))
        found += shadow.advance(now)
    # What would still wait on the shadow machine comes to its end there.
    return found + shadow.advance(now + 1e6)


def some_agents(pick: random.Random) -> list[Agent]:
    """Any agents, but no two events at one moment: those have no order but their ids'."""
    return [
        Agent(
            pick.uniform(0, 60),
            tuple((pick.uniform(0.1, 50), pick.uniform(0.1, 50)) for _ in range(pick.randint(1, 4))),
        )
        for _ in range(pick.randint(1, 8))
    ]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_it_is_exact_whatever_the_real_order_was(seed: int, slots: int) -> None:
    pick = random.Random(seed)
    agents = some_agents(pick)
    found = {c.job: c.fcfs_s for c in live(agents, slots, pick, list(range(40)))}
    expected = fcfs(agents, slots)
    assert found == {f"agent{i}": pytest.approx(jct, abs=1e-6) for i, jct in enumerate(expected)}


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_ids_do_not_matter(seed: int, slots: int) -> None:
    agents = some_agents(random.Random(seed))
    ids = random.Random(seed).sample(range(100), 40)
    one = live(agents, slots, random.Random(seed), list(range(40)))
    other = live(agents, slots, random.Random(seed), ids)
    assert sorted((c.job, c.fcfs_s) for c in one) == sorted((c.job, c.fcfs_s) for c in other)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_without_contention_it_is_what_happened(seed: int, slots: int) -> None:
    agent = some_agents(random.Random(seed))[0]
    (completed,) = live([agent], slots, random.Random(0), list(range(10)))
    assert completed.fcfs_s == pytest.approx(completed.actual_s)
    assert completed.actual_s == pytest.approx(agent.alone)


def test_the_long_one_that_came_first_makes_all_wait() -> None:
    shadow = Shadow(1)
    shadow.arrived(0.0, "long", 1)
    shadow.arrived(1.0, "short", 2)
    shadow.ended(3.0, 2, 2.0)  # it was let through first
    shadow.over("short")
    assert shadow.advance(3.0) == []
    shadow.ended(13.0, 1, 10.0)
    shadow.over("long")
    found = {c.job: (c.actual_s, c.fcfs_s) for c in shadow.advance(13.0)}
    assert found == {"long": (13.0, 10.0), "short": (2.0, 11.0)}


def test_overlapping_segments_of_a_job_are_served_side_by_side() -> None:
    shadow = Shadow(2)
    shadow.arrived(0.0, "job", 1)
    shadow.arrived(1.0, "job", 2)
    shadow.ended(4.0, 1, 4.0)
    shadow.ended(6.0, 2, 5.0)
    shadow.arrived(8.0, "job", 3)
    shadow.ended(9.0, 3, 1.0)
    shadow.over("job")
    (found,) = shadow.advance(9.0)
    assert (found.actual_s, found.fcfs_s) == (9.0, 9.0)


def test_a_job_that_comes_back_was_not_over() -> None:
    shadow = Shadow(1)
    shadow.arrived(0.0, "blocks", 1)
    shadow.arrived(1.0, "job", 2)
    shadow.ended(2.0, 2, 1.0)
    shadow.over("job")
    assert shadow.advance(50.0) == []
    shadow.arrived(60.0, "job", 3)
    shadow.ended(61.0, 3, 1.0)
    shadow.over("job")
    shadow.ended(70.0, 1, 5.0)
    shadow.over("blocks")
    found = {c.job: (c.actual_s, c.fcfs_s) for c in shadow.advance(70.0)}
    assert found == {"blocks": (70.0, 5.0), "job": (60.0, 64.0)}


def test_ends_of_unknown_jobs_are_ignored() -> None:
    shadow = Shadow(1)
    shadow.over("never seen")
    assert shadow.advance(1.0) == []
