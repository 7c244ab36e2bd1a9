"""The scheduler with a simulated engine: what every plan keeps to, and that nobody is left waiting."""

import math
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.job import SegmentState
from astraea_local.scheduler.predictor import Speeds, service_s
from astraea_local.scheduler.scheduler import NewSegment, Scheduler, View
from tests.scheduler.executor import Executor

_POLICIES = ["astraea", "fcfs"]
_POOL = 400
_LONGEST_PROMPT, _MOST_OUTPUT = 200, 60
# Small figures, so that queues, aging and preemption all happen within a few simulated seconds.
_SETTINGS = {
    "level_tokens": (60, 300),
    "aging_ratio": 2.0,
    "preempt_factor": 1.5,
    "min_quantum_tokens": 8,
    "predicted_output_tokens": 20,
}
_CPU = Speeds(prefill_tokens_s=500.0, step_base_s=0.001, step_segment_s=0.01)
_GPU = Speeds(prefill_tokens_s=5000.0, step_base_s=0.01, step_segment_s=0.0001, step_token_s=0.0)


def _scheduler(policy: str, slots: int) -> Scheduler:
    return Scheduler(SchedulerSettings.model_validate(_SETTINGS | {"policy": policy}), slots)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests, cancellations, tool waits and steps in any order; at the end everything is finished."""

    @initialize(
        policy=st.sampled_from(_POLICIES),
        slots=st.integers(1, 4),
        pool=st.sampled_from([None, _POOL]),
        keeps_kv=st.booleans(),
        speeds=st.sampled_from([_CPU, _GPU]),
    )
    def start(self, policy: str, slots: int, pool: int | None, keeps_kv: bool, speeds: Speeds) -> None:
        self.policy = policy
        self.executor = Executor(_scheduler(policy, slots), speeds, pool, keeps_kv)
        self.scheduler = self.executor.scheduler
        self.deferred: set[int] = set()

    @rule(
        job=st.integers(0, 5),
        prompt=st.integers(1, _LONGEST_PROMPT),
        output=st.integers(1, _MOST_OUTPUT),
        cached=st.floats(0, 1),
        priority=st.none() | st.integers(-9, 9),
    )
    def submit(self, job: int, prompt: int, output: int, cached: float, priority: int | None) -> None:
        self.executor.submit(
            f"job-{job}",
            prompt,
            output,
            max_output=_MOST_OUTPUT,
            cached=int(cached * prompt),
            priority=priority,
        )

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.executor.step()

    @precondition(lambda self: self.executor.waiting and self.executor.running)
    @rule(data=st.data())
    def step_with_deferred_segments(self, data: st.DataObject) -> None:
        waiting = [s.id for s in self.executor.waiting]
        deferred = data.draw(st.frozensets(st.sampled_from(waiting), min_size=1))
        self.executor.step(deferred)

    @precondition(lambda self: self.scheduler.segments)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.executor.cancel(data.draw(st.sampled_from(sorted(self.scheduler.segments))))

    @precondition(lambda self: self.executor.waiting)
    @rule(data=st.data(), share=st.floats(0, 1))
    def lose_or_find_kv(self, data: st.DataObject, share: float) -> None:
        segment = data.draw(st.sampled_from(self.executor.waiting))
        self.scheduler.set_cached(segment.id, int(share * segment.context), restore_s=share)

    @rule(seconds=st.floats(0, 100))
    def nothing_happens(self, seconds: float) -> None:
        self.executor.now += seconds

    @rule(job=st.integers(0, 5), age=st.floats(0, 200))
    def end_and_forget(self, job: int, age: float) -> None:
        self.scheduler.end_job(f"job-{job}")
        for name in self.scheduler.forget(self.executor.now - age):
            del self.executor.computed[name]

    @invariant()
    def attained_service_is_what_was_computed(self) -> None:
        if hasattr(self, "scheduler"):
            for job in self.scheduler.jobs.values():
                assert job.attained == self.executor.computed[job.id]

    @invariant()
    def jobs_know_their_segments(self) -> None:
        if hasattr(self, "scheduler"):
            for job in self.scheduler.jobs.values():
                assert job.active == {s.id for s in self.scheduler.segments.values() if s.job == job.id}

    def teardown(self) -> None:
        """Whatever was submitted comes to its end, in a number of steps bounded by the work."""
        if not hasattr(self, "scheduler"):
            return
        # A preempted segment whose KV is lost starts again: each can happen once for each other segment.
        once = sum(s.context + _MOST_OUTPUT for s in self.scheduler.segments.values())
        for _ in range(once * (1 + len(self.scheduler.segments))):
            if not self.scheduler.segments:
                break
            self.executor.step()
        assert not self.scheduler.segments
        assert sorted(self.executor.finished) == sorted(self.executor.outputs)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(deadline=None, max_examples=80, stateful_step_count=25)


@pytest.mark.parametrize("pool", [None, _POOL])
@given(
    arrivals=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60), st.integers(0, 9)), max_size=20),
    slots=st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_fcfs_admits_strictly_in_order_of_arrival(
    pool: int | None, arrivals: list[tuple[int, int, int]], slots: int
) -> None:
    executor = Executor(_scheduler("fcfs", slots), _CPU, pool)
    for number, (prompt, output, steps) in enumerate(arrivals):
        executor.submit(f"job-{number % 3}", prompt, output, max_output=_MOST_OUTPUT)
        for _ in range(steps):
            plan = executor.step()
            assert not plan.preempt
            assert pool is not None or len(plan.order) == min(slots, len(plan.order) + len(executor.waiting))
    while executor.scheduler.segments:
        executor.step()
    assert executor.admitted == sorted(executor.outputs)


def _bound_s(executor: Executor, number: int, before: list[int]) -> float:
    """The longest that segment may wait when those in `before` are all that can be ahead of it."""
    settings_ = executor.scheduler.settings
    overdue = settings_.aging_ratio**2
    segment = executor.scheduler.segments[number]
    slots, speeds = executor.scheduler.slots, executor.speeds
    steps = sum(_LONGEST_PROMPT + executor.outputs[other] for other in before)
    longest_step = executor.prefill_tokens / speeds.prefill_tokens_s
    longest_step += speeds.decode_step(slots, slots * (_LONGEST_PROMPT + _MOST_OUTPUT))
    return (overdue - 1) * service_s(segment, speeds) + (steps + 1) * longest_step


@settings(deadline=None, max_examples=40)
@given(
    slots=st.integers(1, 3),
    earlier=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 30)), max_size=4),
    later=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=8
    ),
    queued=st.integers(1, 6),
    history_s=st.floats(0, 1e5),
    priority=st.integers(-9, 0),
)
def test_no_stream_of_short_segments_keeps_a_long_one_waiting(
    slots: int,
    earlier: list[tuple[int, int]],
    later: list[tuple[int, int, int]],
    queued: int,
    history_s: float,
    priority: int,
) -> None:
    """A segment with predicted service T waits at most (a^2 - 1) T and the work then ahead of it.

    a is `aging_ratio`. After waiting (a^2 - 1) T its own ratio is a^2: it is overdue, before all that are
    not, and of the overdue the first to arrive goes first. So from then on
    nothing that came later is admitted before it. What is ahead are the segments that came before it and
    those that are running: each step does some of their work, in whatever order. That is independent of
    how many come later, how short they are, their priority, and how long their jobs waited in the past.
    """
    executor = Executor(_scheduler("astraea", slots), _CPU)
    for prompt, output in earlier:
        executor.submit("earlier", prompt, output)
    long = executor.submit("long", _LONGEST_PROMPT, _MOST_OUTPUT, priority=priority)
    arrived = executor.now
    # All that came before; and at most one for each slot of those that came later.
    bound = _bound_s(executor, long, [n for n in executor.outputs if n != long] + [long] * slots)
    stream = cycle(later)
    while long not in executor.admitted:
        while len(executor.waiting) <= queued:
            job, prompt, output = next(stream)
            executor.submit(f"short-{job}", prompt, output, priority=9)
            executor.scheduler.jobs[f"short-{job}"].waited += history_s
        executor.step()
        assert executor.now - arrived <= bound


def test_agents_that_never_pause_do_not_lock_out_a_newcomer() -> None:
    """Past waiting counts for their jobs: each new segment of theirs starts with a high ratio."""
    executor = Executor(_scheduler("astraea", 1), _CPU)
    agents = ("a", "b", "c")

    def step() -> None:
        for agent in agents:
            if agent not in executor.scheduler.jobs or not executor.scheduler.jobs[agent].active:
                executor.submit(agent, 10, 5)
        executor.step()

    while executor.now < 60:
        step()
    newcomer = executor.submit("newcomer", _LONGEST_PROMPT, _MOST_OUTPUT)
    arrived = executor.now
    bound = _bound_s(executor, newcomer, [n for n in executor.scheduler.segments if n != newcomer])
    while newcomer not in executor.admitted:
        step()
        assert executor.now - arrived <= bound


def test_a_short_segment_passes_long_ones_that_came_before() -> None:
    executor = Executor(_scheduler("astraea", 1), _CPU)
    running = executor.submit("a", 100, 40)
    executor.step()
    executor.submit("long", 200, 60)
    short = executor.submit("short", 5, 3, max_output=3)
    while executor.scheduler.segments:
        executor.step()
    assert executor.finished.index(short) < 2
    assert executor.admitted[0] == running


def test_a_running_segment_gives_way_to_a_much_shorter_one_after_its_quantum() -> None:
    executor = Executor(_scheduler("astraea", 1), _CPU)
    long = executor.submit("long", 200, 60)
    executor.step()
    short = executor.submit("short", 2, 1, max_output=1)
    plans = [executor.step() for _ in range(20)]
    preempting = next(plan for plan in plans if plan.preempt)
    assert [d.segment for d in preempting.preempt] == [long]
    assert [d.segment for d in preempting.admit] == [short]
    assert "short" in preempting.preempt[0].reason
    assert executor.finished[0] == short
    assert executor.scheduler.segments[long].preemptions == 1


def test_each_admission_starts_a_new_quantum() -> None:
    scheduler = _scheduler("astraea", 1)
    scheduler.submit(0.0, NewSegment(1, "long", 2000, 50))
    scheduler.started(0.0, 1, 0)
    scheduler.advance(1, computed=100, output=0)
    scheduler.stopped(1.0, 1, 100)
    scheduler.started(2.0, 1, 100)
    scheduler.submit(2.0, NewSegment(2, "short", 2, 1))
    assert not scheduler.plan(30.0, View(_CPU)).preempt
    scheduler.advance(1, computed=8, output=0)
    assert scheduler.plan(30.0, View(_CPU)).preempt


def test_preemption_respects_the_pool() -> None:
    """The waiting one is cheap because most of it is cached; its cells would not fit all the same."""
    scheduler = _scheduler("astraea", 2)
    for number, job in ((1, "a"), (2, "b")):
        scheduler.submit(0.0, NewSegment(number, job, 100, 60))
        scheduler.started(0.0, number, 0)
        scheduler.advance(number, computed=100, output=1)
    scheduler.submit(0.0, NewSegment(3, "wide", 350, 2, cached=349))
    full = scheduler.plan(100.0, View(_GPU, room=_POOL - 202))
    assert not full.preempt
    assert not full.admit
    roomy = scheduler.plan(100.0, View(_GPU, room=1000))
    assert [d.segment for d in roomy.preempt] == [2]
    assert [d.segment for d in roomy.admit] == [3]


def test_what_does_not_fit_blocks_those_behind_it() -> None:
    scheduler = _scheduler("fcfs", 4)
    for number, prompt in ((1, 100), (2, 300), (3, 10)):
        scheduler.submit(float(number), NewSegment(number, f"job-{number}", prompt, 20))
    plan = scheduler.plan(5.0, View(_GPU, room=_POOL))
    assert plan.order == (1,)


def test_alone_a_segment_needs_room_only_for_what_it_is() -> None:
    scheduler = _scheduler("fcfs", 4)
    scheduler.submit(0.0, NewSegment(1, "a", _POOL - 1, 200))
    assert scheduler.plan(0.0, View(_GPU, room=_POOL)).order == (1,)
    assert scheduler.plan(0.0, View(_GPU, room=_POOL - 1)).order == ()


@pytest.mark.parametrize("policy", _POLICIES)
def test_queue_time_is_what_passed_while_it_waited(policy: str) -> None:
    scheduler = _scheduler(policy, 1)
    scheduler.submit(10.0, NewSegment(1, "a", 50, 20))
    scheduler.started(13.0, 1, computed=0)
    scheduler.advance(1, computed=50, output=1)
    scheduler.stopped(15.0, 1, cached=50)
    assert scheduler.segments[1].uncached == 1
    scheduler.started(19.0, 1, computed=30)
    scheduler.advance(1, computed=21, output=1)
    ended = scheduler.finish(20.0, 1)
    job = scheduler.jobs["a"]
    assert ended.waited_at(20.0) == job.waited == 7.0
    assert (job.attained, job.segments, job.output_tokens) == (71, 1, 2)
    scheduler.submit(30.0, NewSegment(2, "a", 60, 20))
    scheduler.finish(32.5, 2)
    assert job.waited == 9.5


def test_a_segment_is_submitted_once() -> None:
    scheduler = _scheduler("fcfs", 1)
    scheduler.submit(0.0, NewSegment(1, "a", 5, 5))
    with pytest.raises(ValueError, match="segment 1 was submitted before"):
        scheduler.submit(1.0, NewSegment(1, "b", 5, 5))


def test_only_jobs_that_wait_for_their_client_are_forgotten() -> None:
    scheduler = _scheduler("fcfs", 1)
    for number, job in enumerate(("old", "recent", "active")):
        scheduler.submit(0.0, NewSegment(number, job, 5, 5, parent="lead"))
    scheduler.finish(10.0, 0)
    scheduler.finish(20.0, 1)
    assert scheduler.jobs["old"].parent == "lead"
    assert scheduler.forget(15.0) == ["old"]
    assert set(scheduler.jobs) == {"recent", "active"}


def test_a_new_request_revives_an_ended_job() -> None:
    scheduler = _scheduler("fcfs", 1)
    scheduler.submit(0.0, NewSegment(1, "a", 5, 5))
    scheduler.end_job("a")
    scheduler.end_job("unknown")
    assert scheduler.jobs["a"].final
    scheduler.submit(1.0, NewSegment(2, "a", 5, 5))
    assert not scheduler.jobs["a"].final


def test_jobs_soon_back_from_a_tool_widen_the_batch() -> None:
    scheduler = _scheduler("astraea", 4)
    for number in range(8):
        scheduler.submit(0.0, NewSegment(number, f"job-{number}", 50, 20))
    crowded = scheduler.width(0.0, _GPU)
    for number in range(1, 8):
        scheduler.finish(0.0, number)
    assert scheduler.width(1.0, _GPU) == crowded == 4
    assert scheduler.width(3600.0, _GPU) == 1
    for number in range(1, 8):
        scheduler.end_job(f"job-{number}")
    assert scheduler.width(1.0, _GPU) == 1


def test_last_is_who_would_be_given_up_first() -> None:
    scheduler = _scheduler("fcfs", 3)
    assert scheduler.last(0.0, _CPU) is None
    for number in (1, 2, 3):
        scheduler.submit(float(number), NewSegment(number, f"job-{number}", 5, 5))
    scheduler.started(4.0, 1, 0)
    scheduler.started(4.0, 2, 0)
    last = scheduler.last(5.0, _CPU)
    assert last is not None
    assert last.id == 2


@pytest.mark.parametrize("policy", _POLICIES)
def test_every_segment_can_be_explained(policy: str) -> None:
    scheduler = _scheduler(policy, 1)
    segment = scheduler.submit(0.0, NewSegment(1, "a", 500, 5))
    assert segment.state is SegmentState.WAITING
    rank, service, reason = scheduler.explain(segment, 3.0, _CPU)
    assert math.isfinite(rank.score)
    assert service == pytest.approx(1.0 + 5 * _CPU.decode_step(1, 500))
    assert "waited 3.0 s" in reason
