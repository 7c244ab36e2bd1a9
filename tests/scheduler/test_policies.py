"""What each policy puts first, and how it says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, price_s, service_s
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Bound, Job, Rest, Segment, SegmentState
from astraea_local.scheduler.policies import POLICIES, Policy, make
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.scheduler import NewSegment, Scheduler, View
from astraea_local.scheduler.speeds import Speeds

_AT = Conditions(Speeds())
_SETTINGS = {
    "level_tokens": (8192, 32768, 131072),
    "plas_level_tokens": (8192, 32768, 131072),
    "aging_ratio": 8.0,
    "head_start_s": 20.0,
    "preempt_factor": 2.0,
    "min_quantum_tokens": 64,
    "paper_quota_tokens": (512, 1024, 2048),
    "paper_aging_ratio": 8.0,
}
_POLICIES = list(POLICIES)
_REST = Rest(9.0, 100.0, 100.0, Distribution.of([0.5, 5.0]), 9.0)


def _segment(
    number: int = 1,
    *,
    prompt: int = 1000,
    cached: int = 0,
    arrived: float = 0.0,
    output: float = 100.0,
    received: int = 0,
    rest: Rest = _REST,
) -> Segment:
    return Segment(
        id=number,
        job="a",
        prompt_tokens=prompt,
        max_output=1000,
        arrived=arrived,
        expected_output=Distribution.of([output]),
        rest=rest,
        cached=cached,
        since=arrived,
        received=received,
    )


def _job(*, attained: int = 0, priority: int = 0, waited: float = 0.0) -> Job:
    return Job("a", 0.0, attained=attained, priority=priority, waited=waited)


def _running(segment: Segment, now: float) -> Segment:
    segment.waited = now - segment.since
    segment.state, segment.since = SegmentState.RUNNING, now
    return segment


def _settings(policy: str, **changes: object) -> SchedulerSettings:
    return SchedulerSettings.model_validate(_SETTINGS | {"policy": policy} | changes)


def _make(name: str, **changes: object) -> Policy:
    return make(name, _settings(name, **changes), Predictor())


@pytest.fixture
def astraea() -> Policy:
    return _make("astraea")


def _key(policy: Policy, segment: Segment, job: Job, now: float = 0.0) -> Key:
    return policy.key(segment, job, now, _AT)


def _before(policy: Policy, first: tuple[Segment, Job], second: tuple[Segment, Job], now: float) -> bool:
    """Whether the first goes first."""

    def place(segment: Segment, job: Job) -> tuple[int, float, float, int]:
        key = _key(policy, segment, job, now)
        return (key.level, -key.score(now), segment.arrived, segment.id)

    return place(*first) < place(*second)


def test_every_policy_is_found_by_its_name_and_says_what_it_does() -> None:
    made = {name: _make(name) for name in _POLICIES}
    assert {name: policy.name for name, policy in made.items()} == {name: name for name in _POLICIES}
    assert set(made) == set(SchedulerSettings.model_json_schema()["properties"]["policy"]["enum"])
    assert len({policy.summary for policy in made.values()}) == len(made)
    assert all(0 < len(policy.summary) < 80 for policy in made.values())


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no policy named 'best': choose one of astraea, .*, continuum"):
        make("best", SchedulerSettings(), Predictor())


@pytest.mark.parametrize("name", _POLICIES)
@given(
    arrived=st.floats(0, 1e4),
    times=st.lists(st.floats(0, 1e6), min_size=2, max_size=5),
    attained=st.integers(0, 300_000),
    waited=st.floats(0, 1e4),
    priority=st.integers(-9, 9),
)
def test_waiting_never_moves_a_segment_back(
    name: str, arrived: float, times: list[float], attained: int, waited: float, priority: int
) -> None:
    """While nothing else happens to it its key is the same, and its score grows."""
    policy = _make(name)
    segment, job = _segment(arrived=arrived), _job(attained=attained, waited=waited, priority=priority)
    moments = sorted(arrived + time for time in times)
    first, *others = (_key(policy, segment, job, now) for now in moments)
    for key in others:
        assert (key.level, key.cost) == (first.level, first.cost)
        assert key.since == pytest.approx(first.since, abs=1e-6)
    scores = [first.score(now) for now in moments]
    assert scores == sorted(scores)


# -- astraea ---------------------------------------------------------------------------------------


def test_the_score_is_head_start_and_waiting_over_the_price(astraea: Policy) -> None:
    segment, job = _segment(arrived=2.0), _job(waited=30.0)
    price = price_s(segment, _AT)
    assert _key(astraea, segment, job, 7.0).score(7.0) == pytest.approx((20.0 + 30.0 + 5.0) / price)
    by_ratio = _make("astraea", head_start_s=0.0)
    assert _key(by_ratio, segment, job, 7.0).score(7.0) == pytest.approx(35.0 / price)


def test_reuse_makes_short(astraea: Policy) -> None:
    cached, fresh = _segment(2, cached=900), _segment(1)
    assert _before(astraea, (cached, _job()), (fresh, _job()), 5.0)


def test_of_equal_segments_the_one_that_waited_longer_goes_first(astraea: Policy) -> None:
    early, late = _segment(2, arrived=1.0), _segment(1, arrived=2.0)
    assert _before(astraea, (early, _job()), (late, _job()), 5.0)


def test_waiting_of_earlier_segments_of_the_job_counts(astraea: Policy) -> None:
    assert _before(astraea, (_segment(2), _job(waited=30.0)), (_segment(1), _job()), 5.0)


def test_a_job_that_will_end_soon_goes_before_one_that_goes_on_and_returns_at_once(
    astraea: Policy,
) -> None:
    at_once = Distribution.of([0.001])
    last, first = Rest(0.0, 100.0, 100.0, at_once, 0.0), Rest(30.0, 100.0, 100.0, at_once, 30.0)
    agent = (_segment(1, rest=first), _job())
    assert _before(astraea, (_segment(2, prompt=2000, rest=last), _job()), agent, 5.0)
    assert not _before(astraea, (_segment(2, prompt=60_000, rest=last), _job()), agent, 5.0)


@pytest.mark.parametrize(("attained", "level"), [(0, 0), (8192, 0), (8193, 1), (32769, 2), (131073, 3)])
def test_served_jobs_sink(astraea: Policy, attained: int, level: int) -> None:
    assert astraea.level(_job(attained=attained)) == level
    assert _key(astraea, _segment(), _job(attained=attained)).level == level
    assert level <= astraea.last_level == 3


def test_a_job_that_mostly_waits_for_tools_counts_one_queue_higher(astraea: Policy) -> None:
    job = _job(attained=40_000)
    job.segments, job.served, job.tool_s = 1, 10.0, 1000.0
    assert (job.bound, astraea.level(job)) == (Bound.UNKNOWN, 2)
    job.segments, job.tool_s = 2, 10.0
    assert (job.bound, astraea.level(job)) == (Bound.COMPUTE, 2)
    job.tool_s = 10.1
    assert (job.bound, astraea.level(job)) == (Bound.IO, 1)
    job.attained = 0
    assert astraea.level(job) == 0


def test_a_job_that_got_little_goes_before_one_that_got_much(astraea: Policy) -> None:
    """However short the next segment of the latter is."""
    heavy = (_segment(1, prompt=10, output=1.0), _job(attained=10_000))
    assert _before(astraea, (_segment(2, prompt=2000), _job()), heavy, 5.0)


def test_priority_moves_a_job_by_queues(astraea: Policy) -> None:
    levels = [
        _key(astraea, _segment(), _job(attained=40_000, priority=priority)).level
        for priority in (-9, -1, 0, 1, 2, 9)
    ]
    assert levels == [11, 3, 2, 1, 0, 0]


def test_overdue_is_sixty_three_times_the_service_and_thrice_the_backlog(astraea: Policy) -> None:
    segment = _segment()
    service = service_s(segment, _AT)
    assert astraea.overdue_s(segment, _job(), _AT) == pytest.approx(63 * service)
    busy = Conditions(_AT.speeds, backlog_s=40.0)
    assert astraea.overdue_s(segment, _job(), busy) == pytest.approx(63 * service + 120.0)


def test_the_overdue_go_by_arrival() -> None:
    """Neither shortness nor priority nor a job's past lets later ones pass."""
    scheduler = Scheduler(_settings("astraea"), 1)
    scheduler.submit(0.0, NewSegment(9, "long", 2000, 50, priority=-9))
    now = 64 * service_s(scheduler.segments[9], _AT) + 1e3
    scheduler.submit(1.0, NewSegment(8, "medium", 1000, 50))
    scheduler.submit(now, NewSegment(1, "short", 5, 1, priority=9))
    scheduler.jobs["short"].waited = 1e9
    order = []
    while scheduler.segments:
        (decision,) = scheduler.plan(now, View(_AT.speeds)).admit
        scheduler.started(now, decision.segment, 0)
        scheduler.finish(now, decision.segment)
        order.append(decision.segment)
    assert order == [9, 8, 1]


def _preempts(policy: Policy, now: float, *, waiting_prompt: int = 10) -> bool:
    victim = _running(_segment(1, prompt=4000), 0.0)
    waiting = _segment(2, prompt=waiting_prompt, output=10.0)
    return policy.may_preempt(_key(policy, waiting, _job(), now), _key(policy, victim, _job(), now), now)


def test_preemption_needs_a_clearly_higher_score(astraea: Policy) -> None:
    victim, job = _segment(1, prompt=4000), _job()
    price = price_s(victim, _AT)
    for ratio, expected in ((1.9, False), (2.1, True)):
        waiting = _segment(2, prompt=3900)
        # The victim's score is that of the head start; the other's grows by waiting.
        now = 20.0 * (ratio * price_s(waiting, _AT) / price - 1)
        _running(victim, 0.0)
        keys = (_key(astraea, waiting, job, now), _key(astraea, victim, job, now))
        assert keys[0].score(now) == pytest.approx(ratio * keys[1].score(now))
        assert astraea.may_preempt(*keys, now) is expected


def test_nobody_is_preempted_for_something_longer(astraea: Policy) -> None:
    assert _preempts(astraea, 500.0)
    assert not _preempts(astraea, 500.0, waiting_prompt=5000)


def test_nobody_is_preempted_for_a_lower_queue(astraea: Policy) -> None:
    victim = _running(_segment(1, prompt=4000), 0.0)
    waiting = _segment(2, prompt=10, output=10.0)
    keys = (_key(astraea, waiting, _job(attained=200_000), 2.0), _key(astraea, victim, _job(), 2.0))
    assert keys[0].score(2.0) > 2.0 * keys[1].score(2.0)
    assert not astraea.may_preempt(*keys, 2.0)
    keys = (_key(astraea, waiting, _job(), 2.0), _key(astraea, victim, _job(attained=200_000), 2.0))
    assert astraea.may_preempt(*keys, 2.0)


def test_few_run_at_once_where_batching_buys_little(astraea: Policy) -> None:
    speeds = Speeds(step_base_s=0.0, step_segment_s=0.01)
    assert astraea.width(speeds, 8, 40, 1000.0) == 1
    assert all(_make(name).width(speeds, 8, 1, 1000.0) == 8 for name in _POLICIES if name != "astraea")


# -- the paper -------------------------------------------------------------------------------------


def test_the_papers_ratio_counts_the_jobs_waiting_and_the_calls_service() -> None:
    paper, segment = _make("astraea_paper"), _segment(cached=400, arrived=1.0)
    service = service_s(segment, _AT)
    key = _key(paper, segment, _job(waited=30.0), 6.0)
    assert key.score(6.0) == pytest.approx((35.0 + service) / service)


def test_a_quota_demotes_by_one_queue_and_yielding_before_promotes_by_one() -> None:
    paper, job = _make("astraea_paper"), _job()
    levels = []
    # Quotas 512, 1024 and 2048; the last queue has none.
    for received in (512, 513, 1025, 2049, 10**6, 10**6, 2048, 5000, 1, 1, 1, 1):
        paper.ended(_segment(received=received), job, 1.0, _AT)
        levels.append(job.level)
        assert _key(paper, _segment(), job).level == paper.level(job) == job.level
    assert levels == [0, 1, 2, 3, 2, 3, 2, 3, 2, 1, 0, 0]


def test_the_paper_takes_jobs_back_to_the_first_queue_from_the_last_only() -> None:
    scheduler = Scheduler(_settings("astraea_paper"), 1)
    for number, level in ((1, 0), (2, 2), (3, 3)):
        scheduler.submit(0.0, NewSegment(number, f"job-{number}", 1000, 50))
        scheduler.jobs[f"job-{number}"].level = level
    scheduler.set_policy(0.0, "astraea_paper")
    scheduler.plan(0.0, View(_AT.speeds))
    scheduler.started(0.0, 1, 0)
    service = service_s(scheduler.segments[3], _AT)
    for ratio, level in ((7.9, 3), (8.1, 0)):
        now = (ratio - 1) * service
        scheduler.plan(now, View(_AT.speeds))
        shown = scheduler.explain(scheduler.segments[3], now)
        assert shown.score == pytest.approx(ratio)
        assert (shown.level, scheduler.jobs["job-3"].level) == (level, level)
        assert scheduler.explain(scheduler.segments[2], now).level == 2


def _paper_with(levels: list[int], *, refill: bool) -> Scheduler:
    scheduler = Scheduler(_settings("astraea_paper", paper_refill=refill), 2)
    for number, level in enumerate(levels):
        scheduler.submit(float(number), NewSegment(number, f"job-{number}", 100, 50))
        scheduler.jobs[f"job-{number}"].level = level
    scheduler.set_policy(9.0, "astraea_paper")
    return scheduler


def _admit(scheduler: Scheduler, now: float = 10.0) -> list[int]:
    plan = scheduler.plan(now, View(_AT.speeds))
    assert not plan.preempt
    for decision in plan.admit:
        scheduler.started(now, decision.segment, 0)
    return [decision.segment for decision in plan.admit]


def test_the_paper_leaves_slots_empty_rather_than_filling_them_from_a_lower_queue() -> None:
    scheduler = _paper_with([1, 0, 1], refill=True)
    assert _admit(scheduler) == [1]
    assert _admit(scheduler) == [0]
    scheduler.finish(10.0, 1)
    assert _admit(scheduler) == [2]


def test_the_paper_taken_literally_runs_batches_to_their_end() -> None:
    scheduler = _paper_with([0, 0, 0, 1], refill=False)
    assert _admit(scheduler) == [0, 1]
    scheduler.finish(10.0, 0)
    assert _admit(scheduler) == []
    scheduler.finish(10.0, 1)
    assert _admit(scheduler) == [2]
    scheduler.finish(10.0, 2)
    assert _admit(scheduler) == [3]


# -- the others ------------------------------------------------------------------------------------


def test_fcfs_is_arrival_and_nothing_else() -> None:
    fcfs = _make("fcfs")
    first = (_segment(7, prompt=9000, arrived=1.0), _job(attained=10**6, priority=-9))
    second = (_segment(3, prompt=1, arrived=2.0), _job(priority=9, waited=1e6))
    assert _before(fcfs, first, second, 50.0)
    assert _before(fcfs, (_segment(3), _job()), (_segment(7), _job()), 50.0)
    assert not fcfs.preempts
    assert not _preempts(fcfs, 1e6)


def test_sjf_lets_the_long_wait_for_ever() -> None:
    sjf = _make("sjf")
    short, long = _segment(2, prompt=999, arrived=1e6), _segment(1)
    assert _before(sjf, (short, _job()), (long, _job(waited=1e6)), 1e6)
    assert _before(sjf, (_segment(2, cached=10), _job()), (long, _job()), 0.0)
    assert not sjf.preempts


def test_hrrn_prefers_the_short_until_the_long_has_waited_for_its_length() -> None:
    hrrn = _make("hrrn")
    long, short = _segment(1, prompt=2000), _segment(2, prompt=200, output=10.0, arrived=90.0)
    ratio = 1 + 10.0 / service_s(short, _AT)
    at_100 = 1 + 100.0 / service_s(long, _AT)
    assert _key(hrrn, short, _job(), 100.0).score(100.0) == pytest.approx(ratio)
    assert _key(hrrn, long, _job(waited=1e6), 100.0).score(100.0) == pytest.approx(at_100)
    assert not _before(hrrn, (long, _job()), (short, _job()), 100.0)
    assert _before(hrrn, (long, _job()), (_segment(3, prompt=200, arrived=99.0), _job()), 100.0)


def test_in_mlfq_a_call_sinks_by_what_it_received_itself() -> None:
    mlfq = _make("mlfq")
    job = _job(attained=10**6, priority=9)
    levels = [_key(mlfq, _segment(received=n), job).level for n in (0, 512, 513, 1025, 2049, 10**6)]
    assert levels == [0, 0, 1, 2, 3, 3]
    assert mlfq.last_level == 3
    early, late = _segment(2, prompt=9000, arrived=1.0), _segment(1, prompt=1, arrived=2.0)
    assert _before(mlfq, (early, job), (late, job), 5.0)


def test_in_mlfq_a_call_that_sank_gives_way() -> None:
    mlfq = _make("mlfq")
    waiting, job = _segment(2, prompt=9000), _job()
    for received, expected in ((512, False), (513, True)):
        victim = _running(_segment(1, received=received), 0.0)
        assert mlfq.may_preempt(_key(mlfq, waiting, job), _key(mlfq, victim, job), 0.0) is expected


def test_plas_prefers_jobs_that_received_least_and_among_them_the_first() -> None:
    plas = _make("plas")
    light = (_segment(2, prompt=9000, arrived=5.0), _job(attained=8192))
    heavy = (_segment(1, prompt=1, arrived=1.0), _job(attained=8193))
    assert _before(plas, light, heavy, 9.0)
    assert _before(plas, heavy, (_segment(3, arrived=2.0), _job(attained=30_000)), 9.0)
    keys = (_key(plas, *light), _key(plas, *heavy))
    assert plas.may_preempt(*keys, 9.0)
    assert not plas.may_preempt(keys[1], keys[1], 9.0)


def test_in_plas_a_job_that_waited_eight_times_what_it_was_served_goes_first() -> None:
    plas, segment, job = _make("plas"), _segment(), _job(waited=30.0)
    job.served = 10.0
    expected = 8 * (10.0 + service_s(segment, _AT)) - 30.0
    assert plas.overdue_s(segment, job, _AT) == pytest.approx(expected)
    job.waited = 1e6
    assert plas.overdue_s(segment, job, _AT) == 0.0


def _continuum(wait_s: float) -> Scheduler:
    predictor = Predictor()
    for _ in range(1000):
        predictor.waits.observe(("", "shell"), wait_s)
    return Scheduler(_settings("continuum"), 1, predictor=predictor)


def test_continuum_prefers_those_that_return_within_their_time_to_live() -> None:
    scheduler = _continuum(wait_s=5.0)
    scheduler.plan(0.0, View(_AT.speeds))
    for number, job in enumerate(("first", "second")):
        scheduler.submit(float(number), NewSegment(number, job, 2000, 50))
        scheduler.calls_tool(job, "shell")
    assert {scheduler.explain(s, 2.0).level for s in scheduler.segments.values()} == {1}
    for number in (0, 1):
        scheduler.started(2.0, number, 0)
        scheduler.finish(10.0, number)
    # A return costs some 12 s of queue and prefill, nearly all waits last 5 s: held so long, and no longer.
    until = {job.kept_until for job in scheduler.jobs.values()}
    assert all(time == pytest.approx(15.0, rel=0.03) for time in until)
    scheduler.submit(12.0, NewSegment(2, "newcomer", 50, 50))
    scheduler.submit(14.0, NewSegment(3, "second", 2100, 50))
    scheduler.submit(16.0, NewSegment(4, "first", 2100, 50))
    assert [scheduler.explain(scheduler.segments[i], 20.0).level for i in (2, 3, 4)] == [1, 0, 1]
    assert [_only(scheduler, 20.0 + n) for n in range(3)] == [3, 4, 2]


def _only(scheduler: Scheduler, now: float) -> int:
    (decision,) = scheduler.plan(now, View(_AT.speeds)).admit
    scheduler.started(now, decision.segment, 0)
    scheduler.finish(now, decision.segment)
    return decision.segment


def test_continuum_promises_nothing_when_waits_are_long() -> None:
    scheduler = _continuum(wait_s=1000.0)
    scheduler.plan(0.0, View(_AT.speeds))
    scheduler.submit(0.0, NewSegment(1, "a", 100, 50))
    scheduler.started(0.0, 1, 0)
    scheduler.calls_tool("a", "shell")
    scheduler.finish(10.0, 1)
    assert scheduler.jobs["a"].kept_until < 20.0
    scheduler.submit(1010.0, NewSegment(2, "a", 200, 50))
    assert scheduler.explain(scheduler.segments[2], 1010.0).level == 1


def test_continuum_goes_on_with_what_it_had_to_interrupt() -> None:
    continuum, job = _make("continuum"), Job("a", 5.0)
    assert _key(continuum, _segment(arrived=5.0), job, 6.0).level == 1
    interrupted = _segment(arrived=5.0)
    interrupted.preemptions = 1
    assert _key(continuum, interrupted, job, 6.0) == Key(0, 5.0, 1.0)


# -- reasons ---------------------------------------------------------------------------------------


def _service(segment: Segment) -> str:
    return f"{service_s(segment, _AT):.1f} s"


def test_reasons_name_the_figures_that_decided() -> None:
    segment = _segment(cached=800, received=600)
    job = Job("a", 0.0, attained=10_000, waited=2.0, level=2)
    needs = _service(segment)
    score = _key(_make("astraea"), segment, job, 3.0).score(3.0)
    ratio, own = (5.0 + service_s(segment, _AT)) / service_s(segment, _AT), 1 + 3 / service_s(segment, _AT)
    expected = {
        "astraea": f"Q1, score {score:.1f}: waited 5.0 s, needs {needs} (200 tokens uncached), "
        "about 9 more calls",
        "astraea_paper": f"Q2, ratio {ratio:.1f}: its job waited 5.0 s",
        "fcfs": "in order of arrival, waited 3.0 s",
        "sjf": f"shortest first: needs {needs} (200 tokens uncached)",
        "hrrn": f"response ratio {own:.1f}: waited 3.0 s, needs {needs}",
        "mlfq": "Q1 after 600 tokens, waited 3.0 s",
        "plas": "Q1: its job received 10000 tokens, waited 3.0 s",
        "continuum": "in order of its job's arrival, waited 3.0 s",
    }
    assert {name: _make(name).reason(segment, job, 3.0, _AT) for name in _POLICIES} == expected


def test_reasons_for_going_before_the_others(astraea: Policy) -> None:
    segment = _segment()
    late = 64 * service_s(segment, _AT)
    assert astraea.reason(segment, _job(), late, _AT) == (
        f"overdue, by arrival: waited {late:.1f} s, needs {_service(segment)}"
    )
    back = Job("a", 0.0, segments=1, kept_until=7.0)
    assert _make("continuum").reason(_segment(arrived=6.0), back, 8.0, _AT) == (
        "back within its time-to-live, waited 2.0 s"
    )
