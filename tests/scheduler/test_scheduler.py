"""The scheduler with a simulated engine: what every plan keeps to, and that nobody is left waiting."""

import math
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, service_s, work_s
from astraea_local.scheduler.job import SegmentState
from astraea_local.scheduler.policies import POLICIES
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View
from astraea_local.scheduler.speeds import Speeds
from tests.scheduler.executor import Executor

_POLICIES = list(POLICIES)
_PREEMPTIVE = [name for name, policy in POLICIES.items() if policy.preempts]
_POOL = 400
_LONGEST_PROMPT, _MOST_OUTPUT = 200, 60
# Small figures, so that queues, aging and preemption all happen within a few simulated seconds.
_SETTINGS = {
    "level_tokens": (60, 300),
    "plas_level_tokens": (60, 300),
    "aging_ratio": 2.0,
    "head_start_s": 0.5,
    "preempt_factor": 1.5,
    "min_quantum_tokens": 8,
    "paper_quota_tokens": (40, 120),
    "paper_aging_ratio": 3.0,
    "predicted_output_tokens": 20,
}
_CPU = Speeds(prefill_token_s=0.002, step_base_s=0.001, step_segment_s=0.01)
_GPU = Speeds(prefill_token_s=0.0002, step_base_s=0.01, step_segment_s=0.0001, step_token_s=0.0)
_KINDS = ("", "coder", "chat")
_TOOLS = ("", "shell", "shell:pytest")
_CALL = st.tuples(
    st.integers(0, 5),
    st.integers(1, _LONGEST_PROMPT),
    st.integers(1, _MOST_OUTPUT),
    st.floats(0, 1),
    st.none() | st.integers(-9, 9),
    st.sampled_from(_TOOLS),
)


def _scheduler(policy: str, slots: int, predictor: Predictor | None = None, **changes: object) -> Scheduler:
    settings_ = SchedulerSettings.model_validate(_SETTINGS | {"policy": policy} | changes)
    return Scheduler(settings_, slots, predictor=predictor)


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever the engine can report, in any order; at the end everything is finished."""

    @initialize(
        policy=st.sampled_from(_POLICIES),
        refill=st.booleans(),
        slots=st.integers(1, 4),
        pool=st.sampled_from([None, _POOL]),
        keeps_kv=st.booleans(),
        speeds=st.sampled_from([_CPU, _GPU]),
    )
    def start(
        self, policy: str, refill: bool, slots: int, pool: int | None, keeps_kv: bool, speeds: Speeds
    ) -> None:
        self.scheduler = _scheduler(policy, slots, paper_refill=refill)
        self.executor = Executor(self.scheduler, speeds, pool, keeps_kv)

    @rule(calls=st.lists(_CALL, min_size=1, max_size=5))
    def submit(self, calls: list[tuple[int, int, int, float, int | None, str]]) -> None:
        for job, prompt, output, cached, priority, tool in calls:
            self.executor.submit(
                f"job-{job}",
                prompt,
                output,
                max_output=_MOST_OUTPUT,
                cached=int(cached * prompt),
                priority=priority,
                kind=_KINDS[job % 3],
                tool=tool,
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

    @precondition(lambda self: self.executor.waiting)
    @rule()
    def step_whose_admissions_fail(self) -> None:
        self.executor.step(admissions_fail=True)

    @precondition(lambda self: self.scheduler.segments)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.executor.cancel(data.draw(st.sampled_from(sorted(self.scheduler.segments))))

    @precondition(lambda self: self.executor.running)
    @rule()
    def pool_is_full(self) -> None:
        last = self.scheduler.last(self.executor.now)
        assert last is not None
        self.executor.stop(last.id)

    @precondition(lambda self: self.executor.waiting)
    @rule(data=st.data(), share=st.floats(0, 1))
    def lose_or_find_kv(self, data: st.DataObject, share: float) -> None:
        segment = data.draw(st.sampled_from(self.executor.waiting))
        self.scheduler.set_cached(self.executor.now, segment.id, int(share * segment.context), share)

    @rule(seconds=st.floats(0, 300))
    def nothing_happens(self, seconds: float) -> None:
        self.executor.now += seconds

    @rule(speeds=st.sampled_from([_CPU, _GPU]), pool=st.sampled_from([None, _POOL, 2 * _POOL]))
    def speeds_and_room_change(self, speeds: Speeds, pool: int | None) -> None:
        self.executor.speeds, self.executor.pool = speeds, pool

    @rule(policy=st.sampled_from(_POLICIES))
    def another_policy(self, policy: str) -> None:
        self.scheduler.set_policy(self.executor.now, policy)

    @rule(job=st.integers(0, 5), tool=st.sampled_from(_TOOLS))
    def calls_tool(self, job: int, tool: str) -> None:
        self.scheduler.calls_tool(f"job-{job}", tool)

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

    @invariant()
    def whatever_waits_can_be_explained(self) -> None:
        if hasattr(self, "scheduler"):
            for segment in self.executor.waiting:
                shown = self.scheduler.explain(segment, self.executor.now)
                assert shown.reason
                assert math.isfinite(shown.score)
                assert shown.service_s > 0

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
TestScheduler.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)

_ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(1, _LONGEST_PROMPT),
        st.integers(1, _MOST_OUTPUT),
        st.integers(0, 9),
        st.integers(-1, 1),
    ),
    max_size=15,
)


def _serve(executor: Executor, arrivals: list[tuple[int, int, int, int, int]]) -> list[Plan]:
    for job, prompt, output, steps, priority in arrivals:
        executor.submit(
            f"job-{job}",
            prompt,
            output,
            max_output=_MOST_OUTPUT,
            priority=priority,
            kind=_KINDS[job % 3],
            tool=_TOOLS[output % 3],
        )
        for _ in range(steps):
            executor.step()
    executor.run()
    return executor.plans


@pytest.mark.parametrize("policy", _POLICIES)
@given(arrivals=_ARRIVALS, slots=st.integers(1, 4), refill=st.booleans())
@settings(deadline=None, max_examples=15)
def test_each_call_runs_to_its_end_once_and_the_same_events_give_the_same_plans(
    policy: str, arrivals: list[tuple[int, int, int, int, int]], slots: int, refill: bool
) -> None:
    first, second = (Executor(_scheduler(policy, slots, paper_refill=refill), _CPU) for _ in range(2))
    assert _serve(first, arrivals) == _serve(second, arrivals)
    assert sorted(first.finished) == sorted(first.admitted) == sorted(first.outputs)
    # With its KV kept, nothing of a segment is computed twice.
    for number, (_job, prompt, output, _steps, _priority) in enumerate(arrivals, start=1):
        assert first.received[number] == prompt + output - 1


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
    executor.run()
    assert executor.admitted == sorted(executor.outputs)


class _Watch:
    """A waiting segment, and how long it may still wait under `astraea`.

    It becomes overdue after at most (a^2 - 1) T + 3 B: a is `aging_ratio`, T its predicted service, B the
    largest backlog while it waits, the machine time of all that wait. Costs are made anew when the backlog
    has doubled or halved, and less than a second counts as one, so that B is known within a factor of two
    and at least two seconds. From then on only those that run, and those that came before, go before it:
    each step does some of their work. That is independent of how many come later, how short they are,
    their priority, and how long their jobs waited in the past.
    """

    def __init__(self, executor: Executor, number: int) -> None:
        self.executor, self.number = executor, number
        self.segment = executor.scheduler.segments[number]
        self.since = executor.now
        self.backlog_s = 0.0
        self.overdue_since = math.inf
        self.before: set[int] = set()
        self.steps = 0

    @property
    def admitted(self) -> bool:
        return self.number in self.executor.admitted

    def step(self) -> None:
        """One step of the executor, and what must hold before and after it."""
        executor = self.executor
        one = Conditions(executor.speeds, width=1)
        self.backlog_s = max(self.backlog_s, sum(work_s(s, one) for s in executor.waiting))
        executor.step()
        if self.admitted:
            return
        if self.overdue_since < math.inf:
            assert {s.id for s in executor.running} <= self.before
            assert executor.now - self.overdue_since <= self.steps * self.longest_step_s()
        elif self.segment.waited_at(executor.now) > self.limit_s():
            reason = executor.scheduler.explain(self.segment, executor.now).reason
            assert reason.startswith("overdue, by arrival"), reason
            self._is_overdue()

    def limit_s(self) -> float:
        all_slots = Conditions(self.executor.speeds, self.executor.scheduler.slots)
        patience = 3 * 2 * max(1.0, self.backlog_s)
        aging = self.executor.scheduler.settings.aging_ratio
        return (aging**2 - 1) * service_s(self.segment, all_slots) + patience

    def longest_step_s(self) -> float:
        executor = self.executor
        slots = executor.scheduler.slots
        prefill_s = executor.speeds.prefill(executor.prefill_tokens, 0)
        return prefill_s + executor.speeds.decode_step(slots, slots * (_LONGEST_PROMPT + _MOST_OUTPUT))

    def _is_overdue(self) -> None:
        executor = self.executor
        self.overdue_since = executor.now
        ahead = [*executor.running, *(s for s in executor.waiting if s.id < self.number)]
        self.before = {s.id for s in ahead}
        outputs = executor.outputs
        self.steps = 1 + sum(s.uncached + max(0, outputs[s.id] - s.output) for s in ahead)


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
    executor = Executor(_scheduler("astraea", slots), _CPU)
    for prompt, output in earlier:
        executor.submit("earlier", prompt, output)
    long = _Watch(executor, executor.submit("long", _LONGEST_PROMPT, _MOST_OUTPUT, priority=priority))
    stream = cycle(later)
    while not long.admitted:
        while len(executor.waiting) <= queued:
            job, prompt, output = next(stream)
            executor.submit(f"short-{job}", prompt, output, priority=9)
            executor.scheduler.jobs[f"short-{job}"].waited += history_s
        long.step()


def test_agents_that_never_pause_do_not_lock_out_a_newcomer() -> None:
    """Past waiting counts for their jobs: each new segment of theirs starts with a high score."""
    executor = Executor(_scheduler("astraea", 1), _CPU)

    def agents_go_on() -> None:
        for agent in ("a", "b", "c"):
            if agent not in executor.scheduler.jobs or not executor.scheduler.jobs[agent].active:
                executor.submit(agent, 10, 5)

    while executor.now < 60:
        agents_go_on()
        executor.step()
    newcomer = _Watch(executor, executor.submit("newcomer", _LONGEST_PROMPT, _MOST_OUTPUT))
    while not newcomer.admitted:
        agents_go_on()
        newcomer.step()
    assert executor.finished[-1] != newcomer.number


@pytest.mark.parametrize("overdue", [True, False])
def test_nothing_takes_the_slot_of_one_that_was_overdue(overdue: bool) -> None:
    """Not even a short one of a job that waited for hours in the past."""
    scheduler = _scheduler("astraea", 1)
    scheduler.submit(0.0, NewSegment(1, "patient", 1, 1))
    scheduler.finish(7200.0, 1)
    scheduler.submit(7200.0, NewSegment(2, "long", _LONGEST_PROMPT, _MOST_OUTPUT, priority=-9))
    now = 7800.0 if overdue else 7201.0
    scheduler.plan(now, View(_CPU))
    scheduler.started(now, 2, 0)
    scheduler.advance(2, computed=100, output=0)
    scheduler.submit(now, NewSegment(3, "patient", 2, 1))
    preempted = [d.segment for d in scheduler.plan(now, View(_CPU)).preempt]
    assert preempted == ([] if overdue else [2])


def test_a_full_pool_takes_the_slots_of_the_overdue_last() -> None:
    scheduler = _scheduler("astraea", 2)
    scheduler.submit(0.0, NewSegment(1, "long", _LONGEST_PROMPT, _MOST_OUTPUT, priority=-9))
    scheduler.plan(0.0, View(_GPU))
    scheduler.started(600.0, 1, 0)
    scheduler.submit(600.0, NewSegment(2, "short", 5, 5))
    scheduler.started(600.0, 2, 0)
    given_up = []
    while (last := scheduler.last(601.0)) is not None:
        given_up.append(last.id)
        scheduler.stopped(601.0, last.id, 0)
    assert given_up == [2, 1]


def test_a_short_segment_passes_long_ones_that_came_before() -> None:
    executor = Executor(_scheduler("astraea", 1), _CPU)
    running = executor.submit("a", 100, 40)
    executor.step()
    executor.submit("long", 200, 60)
    short = executor.submit("short", 5, 3, max_output=3)
    executor.run()
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
    assert preempting.preempt[0].reason == "gave way to short"
    assert executor.finished[0] == short
    assert executor.scheduler.segments[long].preemptions == 1


@pytest.mark.parametrize("policy", _PREEMPTIVE)
def test_each_admission_starts_a_new_quantum(policy: str) -> None:
    scheduler = _scheduler(policy, 1)
    scheduler.submit(0.0, NewSegment(1, "long", 2000, 50))
    scheduler.started(0.0, 1, 0)
    scheduler.advance(1, computed=100, output=0)
    scheduler.stopped(1.0, 1, 100)
    scheduler.started(2.0, 1, 100)
    scheduler.submit(2.0, NewSegment(2, "short", 2, 1, priority=1))
    scheduler.advance(1, computed=7, output=0)
    assert not scheduler.plan(30.0, View(_CPU)).preempt
    scheduler.advance(1, computed=1, output=0)
    assert scheduler.plan(30.0, View(_CPU)).preempt


def _agents_and_chats(wait_s: float, calls: int) -> Predictor:
    """Has seen agents make so many calls with a tool between them, and chats make one."""
    predictor = Predictor()
    for _ in range(60):
        for number in range(1, calls + 1):
            predictor.calls.observe("agent", number, ended=number == calls)
    for _ in range(2000):
        predictor.calls.observe("chat", 1, ended=True)
        predictor.waits.observe(("kind agent",), wait_s)
        for kind in ("agent", "chat"):
            predictor.outputs.observe((kind,), 100)
            predictor.growth.observe((kind,), 100)
    return predictor


@settings(deadline=None, max_examples=40)
@given(
    wait_s=st.floats(0.1, 10),
    calls=st.integers(20, 250),
    agent=st.integers(50, 1000),
    chat=st.integers(500, 8000),
)
def test_two_segments_do_not_take_the_slot_from_each_other_again_and_again(
    wait_s: float, calls: int, agent: int, chat: int
) -> None:
    """What an agent's call is worth depends on how much waits: little, and each swap changes who waits."""
    predictor = _agents_and_chats(wait_s, calls)
    one_level = {"level_tokens": (), "head_start_s": 20.0, "min_quantum_tokens": 64}
    executor = Executor(_scheduler("astraea", 1, predictor, **one_level), _CPU)
    executor.submit("chat", chat, 100, kind="chat")
    executor.step()
    executor.submit("agent", agent, 100, kind="agent")
    executor.run()
    assert sum(executor.preempted.values()) <= 1


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


def test_who_gives_way_leaves_its_room_even_before_it_took_all_of_it() -> None:
    """What a running segment has still to prefill is taken from the room as well."""
    scheduler = _scheduler("astraea", 1)
    scheduler.submit(0.0, NewSegment(1, "long", 300, 60))
    scheduler.started(0.0, 1, 0)
    scheduler.advance(1, computed=10, output=0)
    scheduler.submit(0.0, NewSegment(2, "short", 150, 1))
    scheduler.set_cached(0.0, 2, 149, 0.0)
    plan = scheduler.plan(1.0, View(_GPU, room=100))
    assert [d.segment for d in plan.preempt] == [1]
    assert [d.segment for d in plan.admit] == [2]


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


def test_those_that_decode_go_before_those_that_prefill_and_these_in_the_policys_order() -> None:
    scheduler = _scheduler("fcfs", 4)
    for number in (1, 2, 3):
        scheduler.submit(float(number), NewSegment(number, f"job-{number}", 100, 20))
    for number in (3, 2, 1):
        scheduler.started(5.0, number, 0)
    assert scheduler.plan(5.0, View(_CPU)).order == (1, 2, 3)
    scheduler.advance(2, computed=100, output=1)
    assert scheduler.plan(6.0, View(_CPU)).order == (2, 1, 3)


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
    assert job.served == 3.0
    scheduler.submit(30.0, NewSegment(2, "a", 60, 20))
    assert job.tool_s == 10.0
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
    scheduler.end_job("recent")
    assert scheduler.forget(15.0) == []
    assert scheduler.forget(25.0) == ["recent"]


def test_a_job_that_came_back_is_neither_forgotten_nor_taken_for_over() -> None:
    scheduler = _scheduler("astraea", 4)
    scheduler.submit(0.0, NewSegment(1, "a", 50, 5))
    scheduler.finish(1.0, 1)
    scheduler.submit(2.0, NewSegment(2, "a", 50, 5))
    assert scheduler.width(2.0, _GPU) == 1
    scheduler.plan(1000.0, View(_CPU))
    assert not scheduler.jobs["a"].presumed_over
    assert scheduler.forget(1000.0) == []
    scheduler.finish(1000.0, 2)
    scheduler.end_job("a")
    scheduler.submit(1001.0, NewSegment(3, "a", 50, 5))
    assert scheduler.forget(2000.0) == []


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
    assert scheduler.last(0.0) is None
    for number in (1, 2, 3):
        scheduler.submit(float(number), NewSegment(number, f"job-{number}", 5, 5))
    scheduler.started(4.0, 1, 0)
    scheduler.started(4.0, 2, 0)
    last = scheduler.last(5.0)
    assert last is not None
    assert last.id == 2


@pytest.mark.parametrize("policy", _POLICIES)
def test_every_segment_can_be_explained(policy: str) -> None:
    scheduler = _scheduler(policy, 1)
    segment = scheduler.submit(0.0, NewSegment(1, "a", 500, 5))
    assert segment.state is SegmentState.WAITING
    scheduler.plan(0.0, View(_CPU, deferred=frozenset([1])))
    shown = scheduler.explain(segment, 3.0)
    assert math.isfinite(shown.score)
    expected = 1.0 + 5 * _CPU.decode_step(1, 500)
    assert shown.service_s == pytest.approx(expected)
    assert "waited 3.0 s" in shown.reason or f"needs {expected:.1f} s" in shown.reason


@pytest.mark.parametrize("policy", _POLICIES)
def test_another_policy_takes_over_at_once(policy: str) -> None:
    """What came last goes first as soon as the shortest do, and what runs goes on running."""
    scheduler = _scheduler(policy, 1)
    scheduler.submit(0.0, NewSegment(1, "a", 100, 5))
    scheduler.started(0.0, 1, 0)
    for number in range(2, 9):
        scheduler.submit(float(number), NewSegment(number, f"job-{number}", 1000 - 100 * number, 5))
    scheduler.set_policy(9.0, "sjf")
    assert scheduler.plan(9.0, View(_CPU)).order == (1,)
    scheduler.finish(9.0, 1)
    order = []
    while scheduler.segments:
        (decision,) = scheduler.plan(10.0, View(_CPU)).admit
        scheduler.started(10.0, decision.segment, 0)
        scheduler.finish(10.0, decision.segment)
        order.append(decision.segment)
    assert order == [8, 7, 6, 5, 4, 3, 2]
    with pytest.raises(ValueError, match="no policy named 'best': choose one of astraea, "):
        scheduler.set_policy(11.0, "best")
    assert scheduler.policy.name == "sjf"


def test_kv_that_was_found_moves_a_segment_forward() -> None:
    scheduler = _scheduler("astraea", 1)
    for number in (1, 2):
        scheduler.submit(0.0, NewSegment(number, f"job-{number}", 150, 5))
    assert scheduler.plan(0.0, View(_CPU)).order == (1,)
    scheduler.set_cached(0.0, 2, 140, 0.0)
    assert scheduler.plan(0.0, View(_CPU)).order == (2,)
    scheduler.set_cached(0.0, 2, 140, restore_s=60.0)
    assert scheduler.plan(0.0, View(_CPU)).order == (1,)


def test_a_new_priority_holds_for_all_segments_of_the_job() -> None:
    scheduler = _scheduler("astraea", 1)
    for number, job in ((1, "a"), (2, "b"), (3, "c")):
        scheduler.submit(0.0, NewSegment(number, job, 50, 5))
        scheduler.jobs[job].attained = 100
    scheduler.set_policy(0.0, "astraea")
    assert scheduler.plan(1.0, View(_CPU)).order == (1,)
    scheduler.submit(1.0, NewSegment(4, "b", 190, 5, priority=1))
    assert scheduler.plan(1.0, View(_CPU)).order == (2,)


@pytest.mark.parametrize("policy", ["astraea", "plas"])
def test_what_one_segment_receives_counts_for_its_siblings_that_wait(policy: str) -> None:
    scheduler = _scheduler(policy, 1)
    scheduler.submit(0.0, NewSegment(1, "wide", 200, 5))
    scheduler.submit(0.0, NewSegment(2, "wide", 50, 5))
    scheduler.submit(0.0, NewSegment(3, "other", 60, 5))
    scheduler.started(0.0, 1, 0)
    assert scheduler.explain(scheduler.segments[2], 1.0).level == 0
    scheduler.advance(1, computed=61, output=0)
    scheduler.plan(1.0, View(_CPU))
    assert [scheduler.explain(scheduler.segments[i], 1.0).level for i in (2, 3)] == [1, 0]


def test_a_tool_is_learned_by_the_name_that_was_told_last() -> None:
    scheduler = _scheduler("fcfs", 1)
    scheduler.submit(0.0, NewSegment(1, "a", 5, 5))
    scheduler.finish(1.0, 1)
    scheduler.calls_tool("a", "shell")
    scheduler.calls_tool("unknown", "shell")
    assert scheduler.jobs["a"].tool == "shell"
    scheduler.submit(3.0, NewSegment(2, "a", 9, 5))
    scheduler.finish(4.0, 2)
    scheduler.submit(5.0, NewSegment(3, "a", 20, 5, tool="shell:pytest"))
    assert scheduler.jobs["a"].tools == {"shell": 1, "shell:pytest": 1}
    assert scheduler.predictor.waits.seen("shell") == 2
    assert scheduler.predictor.waits.seen("shell:pytest") == 1


def test_a_silent_job_is_counted_as_over_once_and_may_return() -> None:
    scheduler = _scheduler("fcfs", 1)
    calls = scheduler.predictor.calls
    scheduler.submit(0.0, NewSegment(1, "a", 5, 5))
    scheduler.finish(1.0, 1)
    scheduler.plan(180.0, View(_CPU))
    assert (calls.count, scheduler.jobs["a"].presumed_over) == (0, False)
    for now in (181.0, 1000.0):
        scheduler.plan(now, View(_CPU))
        assert (calls.count, scheduler.jobs["a"].presumed_over) == (1, True)
    scheduler.submit(2000.0, NewSegment(2, "a", 5, 5))
    assert (calls.count, scheduler.jobs["a"].presumed_over) == (1, False)
    scheduler.finish(2001.0, 2)
    scheduler.end_job("a")
    scheduler.end_job("a")
    assert calls.count == 2
    assert scheduler.forget(3000.0) == ["a"]
    assert calls.count == 2


def test_a_job_that_is_forgotten_counts_as_over() -> None:
    scheduler = _scheduler("fcfs", 1)
    scheduler.submit(0.0, NewSegment(1, "a", 5, 5))
    scheduler.finish(1.0, 1)
    assert scheduler.forget(2.0) == ["a"]
    assert scheduler.predictor.calls.count == 1
    assert not scheduler.jobs


@pytest.mark.parametrize("policy", _PREEMPTIVE)
def test_preemptive_policies_preempt_and_others_do_not(policy: str) -> None:
    def preemptions(name: str) -> int:
        executor = Executor(_scheduler(name, 1), _CPU)
        executor.submit("long", 200, 60)
        for number in range(20):
            executor.step()
            executor.submit(f"short-{number}", 2, 1, max_output=1)
        executor.run()
        return sum(executor.preempted.values())

    assert preemptions(policy) > 0
    assert not any(preemptions(name) for name in _POLICIES if name not in _PREEMPTIVE)


def test_a_priority_that_is_set_holds_until_a_request_brings_another() -> None:
    scheduler = _scheduler("astraea", 1)
    scheduler.submit(0.0, NewSegment(1, "job", 10, 10))
    scheduler.set_priority(0.0, "job", -2)
    scheduler.submit(1.0, NewSegment(2, "job", 10, 10))
    levels = [scheduler.explain(scheduler.segments[i], 1.0).level for i in (1, 2)]
    assert levels == [2, 2]
    scheduler.submit(2.0, NewSegment(3, "job", 10, 10, priority=0))
    assert [scheduler.explain(scheduler.segments[i], 2.0).level for i in (1, 2, 3)] == [0, 0, 0]
    with pytest.raises(KeyError):
        scheduler.set_priority(2.0, "nobody", 1)


def test_prompt_and_cached_tokens_of_a_job_are_counted_once_for_each_segment() -> None:
    scheduler = _scheduler("astraea", 1)
    for number in (1, 2):
        scheduler.submit(0.0, NewSegment(number, "job", 100, 10))
        scheduler.started(0.0, number, 80)
        scheduler.advance(number, computed=20, output=1)
        scheduler.stopped(0.0, number, 101)
        scheduler.started(0.0, number, 101)
        scheduler.finish(1.0, number)
    job = scheduler.jobs["job"]
    assert (job.prompt_tokens, job.cached_tokens) == (200, 160)
