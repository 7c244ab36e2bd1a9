"""What each policy puts first, and how it says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.job import Job, Segment, SegmentState
from astraea_local.scheduler.policies import POLICIES, Policy, Rank, make
from astraea_local.scheduler.predictor import Speeds, service_s

_SPEEDS = Speeds()
_SETTINGS = SchedulerSettings()


def _segment(
    number: int = 1,
    *,
    prompt: int = 1000,
    cached: int = 0,
    arrived: float = 0.0,
    predicted: float = 100.0,
) -> Segment:
    return Segment(
        id=number,
        job="a",
        prompt_tokens=prompt,
        max_output=1000,
        arrived=arrived,
        predicted_output=predicted,
        cached=cached,
        since=arrived,
    )


def _job(*, attained: int = 0, priority: int = 0, waited: float = 0.0) -> Job:
    return Job("a", 0.0, attained=attained, priority=priority, waited=waited)


def _running(segment: Segment, now: float, *, quantum: int) -> Segment:
    segment.waited = now - segment.since
    segment.state, segment.since, segment.quantum = SegmentState.RUNNING, now, quantum
    return segment


@pytest.fixture
def astraea() -> Policy:
    return make("astraea", _SETTINGS)


def _rank(policy: Policy, segment: Segment, job: Job, now: float = 0.0) -> Rank:
    return policy.rank(segment, job, now, _SPEEDS)


def test_every_policy_is_found_by_its_name() -> None:
    assert {name: make(name, _SETTINGS).name for name in POLICIES} == {
        "astraea": "astraea",
        "fcfs": "fcfs",
    }


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no policy named 'sjf': choose one of astraea, fcfs"):
        make("sjf", _SETTINGS)


def test_reuse_makes_short(astraea: Policy) -> None:
    cached = _rank(astraea, _segment(cached=900), _job(), now=5.0)
    fresh = _rank(astraea, _segment(), _job(), now=5.0)
    assert cached.level == fresh.level
    assert cached.score > fresh.score
    assert cached < fresh


def test_of_equal_segments_the_one_that_waited_longer_goes_first(astraea: Policy) -> None:
    early = _rank(astraea, _segment(2, arrived=1.0), _job(), now=5.0)
    late = _rank(astraea, _segment(1, arrived=2.0), _job(), now=5.0)
    assert early < late


def test_waiting_of_earlier_segments_of_the_job_counts(astraea: Policy) -> None:
    assert _rank(astraea, _segment(), _job(waited=30.0)) < _rank(astraea, _segment(), _job())


@pytest.mark.parametrize(("attained", "level"), [(0, 0), (8192, 0), (8193, 1), (32769, 2), (131073, 3)])
def test_served_jobs_sink(astraea: Policy, attained: int, level: int) -> None:
    assert astraea.level(_job(attained=attained)) == level
    assert _rank(astraea, _segment(), _job(attained=attained)).level == level


def test_a_job_that_got_little_goes_before_one_that_got_much(astraea: Policy) -> None:
    """However short the next segment of the latter is."""
    light = _rank(astraea, _segment(prompt=2000), _job())
    heavy = _rank(astraea, _segment(prompt=10, predicted=1.0), _job(attained=10_000))
    assert light < heavy


def test_waiting_raises_through_every_queue(astraea: Policy) -> None:
    segment, job = _segment(), _job(attained=200_000)
    service = service_s(segment, _SPEEDS)
    moments = [ratio * service for ratio in (0, 6.9, 7.1, 62.9, 63.1)]
    assert [_rank(astraea, segment, job, now).level for now in moments] == [3, 3, 2, 2, 0]


def test_the_overdue_go_by_arrival(astraea: Policy) -> None:
    """Past every queue, neither shortness nor priority nor a job's past lets later ones pass."""
    long = _segment(2, prompt=2000)
    overdue = 63.1 * service_s(long, _SPEEDS)
    rank = _rank(astraea, long, _job(attained=200_000, priority=-9), overdue)
    short = _segment(1, prompt=5, predicted=1.0, arrived=1.0)
    for job in (_job(), _job(priority=9), _job(waited=1e9)):
        assert rank < _rank(astraea, short, job, overdue)
    earlier = _segment(3, prompt=5, predicted=1.0, arrived=-1.0)
    assert _rank(astraea, earlier, _job(), overdue) < rank


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 300_000), st.integers(-9, 9))
def test_waiting_never_moves_a_segment_back(a: float, b: float, attained: int, priority: int) -> None:
    policy = make("astraea", _SETTINGS)
    segment, job = _segment(), _job(attained=attained, priority=priority)
    assert _rank(policy, segment, job, max(a, b)) <= _rank(policy, segment, job, min(a, b))


def test_priority_moves_a_job_by_queues(astraea: Policy) -> None:
    levels = [
        _rank(astraea, _segment(), _job(attained=40_000, priority=priority)).level
        for priority in (-9, -1, 0, 1, 2, 9)
    ]
    assert levels == [11, 3, 2, 1, 0, 0]


def _preempts(policy: Policy, now: float, *, quantum: int, waiting_prompt: int = 10) -> bool:
    victim = _running(_segment(1, prompt=4000), 0.0, quantum=quantum)
    waiting = _segment(2, prompt=waiting_prompt, predicted=10.0)
    ranks = (_rank(policy, waiting, _job(), now), _rank(policy, victim, _job(), now))
    return policy.may_preempt(waiting, victim, ranks, _SPEEDS)


def test_preemption_needs_a_clearly_higher_score(astraea: Policy) -> None:
    service = service_s(_segment(2, prompt=10, predicted=10.0), _SPEEDS)
    assert not _preempts(astraea, 1.9 * service, quantum=1000)
    assert _preempts(astraea, 2.1 * service, quantum=1000)


def test_preemption_leaves_everyone_a_quantum(astraea: Policy) -> None:
    assert not _preempts(astraea, 60.0, quantum=63)
    assert _preempts(astraea, 60.0, quantum=64)


def test_nobody_is_preempted_for_something_longer(astraea: Policy) -> None:
    assert not _preempts(astraea, 500.0, quantum=1000, waiting_prompt=5000)


def test_nobody_is_preempted_for_a_lower_queue(astraea: Policy) -> None:
    victim = _running(_segment(1, prompt=4000), 0.0, quantum=1000)
    waiting = _segment(2, prompt=10, predicted=10.0)
    low = _job(attained=200_000)
    ranks = (_rank(astraea, waiting, low, 2.0), _rank(astraea, victim, _job(), 2.0))
    assert ranks[0].score > _SETTINGS.preempt_factor * ranks[1].score
    assert not astraea.may_preempt(waiting, victim, ranks, _SPEEDS)


def test_fcfs_is_arrival_and_nothing_else() -> None:
    fcfs = make("fcfs", _SETTINGS)
    first = _rank(fcfs, _segment(7, prompt=9000, arrived=1.0), _job(attained=10**6, priority=-9), 50.0)
    second = _rank(fcfs, _segment(3, prompt=1, arrived=2.0), _job(priority=9, waited=1e6), 50.0)
    assert first < second
    assert _rank(fcfs, _segment(3), _job()) < _rank(fcfs, _segment(7), _job())
    assert fcfs.width(_SPEEDS, 4, 1, 1000.0) == 4
    assert not fcfs.preempts
    assert not _preempts(fcfs, 1e6, quantum=10**6)


def test_reasons_are_readable(astraea: Policy) -> None:
    segment = _segment(cached=800)
    now = 3.0
    job = _job(waited=2.0)
    service = service_s(segment, _SPEEDS)
    assert astraea.reason(_rank(astraea, segment, job, now), segment, job, now, _SPEEDS) == (
        f"Q0, ratio {(5 + service) / service:.1f}: waited 5.0 s, needs {service:.1f} s (200 tokens uncached)"
    )
    raised = _job(attained=10_000)
    late = 10 * service
    text = astraea.reason(_rank(astraea, segment, raised, late), segment, raised, late, _SPEEDS)
    assert text.startswith("Q0, ratio 11.0: ")
    assert text.endswith(", raised from Q1")
    fcfs = make("fcfs", _SETTINGS)
    assert fcfs.reason(_rank(fcfs, segment, job), segment, job, now, _SPEEDS) == (
        "in order of arrival, waited 3.0 s"
    )
