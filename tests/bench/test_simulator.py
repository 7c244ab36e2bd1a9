"""The simulator: every job ends once, time and KV cells add up, what can be computed by hand comes out."""

import math
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.bench import experiment
from astraea_local.bench.experiment import POLICY_NAMES, RETENTION_NAMES, Setting, simulate
from astraea_local.bench.machine import MACHINES, Machine, a100_8b
from astraea_local.bench.sim_kv import SimKv, State
from astraea_local.bench.simulator import JobResult, SimResult, Simulation
from astraea_local.bench.workloads import Call, SimJob, infercept
from astraea_local.profile import RetentionSettings, SchedulerSettings
from astraea_local.scheduler.batching import even_chunk
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention import make
from astraea_local.scheduler.speeds import Speeds

# A prompt token takes 10 ms, a step 100 ms, whatever is in it.
ROUND = Speeds(prefill_token_s=0.01, step_base_s=0.1, step_segment_s=0.0, step_token_s=0.0)
KEEPING = [name for name in RETENTION_NAMES if name != "drop"]


def machine(**changes: object) -> Machine:
    """One slot, much room, round speeds."""
    plain = Machine("test", ROUND, slots=1, cells=100_000, sequences=1000)
    return replace(plain, **changes)  # type: ignore[arg-type]


def job(name: str, *calls: tuple[int, int] | tuple[int, int, float], at: float = 0.0) -> SimJob:
    """Calls of new tokens, output tokens, and the seconds of the tool wait before the next one."""
    made = [Call(*call[:2], "tool", call[2] if len(call) > 2 else 0.0) for call in calls]
    made[-1] = replace(made[-1], tool="", tool_s=0.0)
    return SimJob(name, "kind", at, 0, tuple(made))


def least_s(of: SimJob, on: Machine, *, kept: bool = True, chunked: bool = False) -> float:
    """Seconds that the job's calls take on an empty machine, tool waits left out.

    `kept`: whether its KV survives them; `chunked`: whether prompts are longer than a batch.
    """
    speeds, context, cached, total = on.speeds, 0, 0, 0.0
    for call in of.calls:
        context += call.new_tokens
        while cached < context:
            tokens = even_chunk(context - cached, on.batch) if chunked else context - cached
            total += speeds.prefill(tokens, cached)
            cached += tokens
        steps = call.output_tokens - 1
        # Contexts of the steps: context + 1, context + 2, ... context + steps.
        total += steps * speeds.decode_step(1, 0)
        total += speeds.step_token_s * (steps * context + steps * (steps + 1) / 2)
        context += call.output_tokens
        cached = context - 1 if kept else 0
    return total


def tools_s(of: SimJob) -> float:
    """Its tool waits together."""
    return sum(call.tool_s for call in of.calls)


def by_id(result: SimResult) -> dict[str, JobResult]:
    """The jobs of a result; each must be there once."""
    found = {ended.id: ended for ended in result.jobs}
    assert len(found) == len(result.jobs)
    return found


class Watched(Simulation):
    """Checks its books whenever time passes."""

    __slots__ = ()

    def _pass(self, seconds: float) -> None:
        assert seconds >= 0
        super()._pass(seconds)
        kv, states = self._kv, [live.state for live in self._live.values()]
        assert 0 <= kv.used <= self.machine.cells
        assert kv.used == sum(state.resident for state in states)
        assert kv.running == sum(state.running for state in states) <= self.machine.slots
        assert kv.running + len(kv.idle) <= self.machine.sequences
        assert all(state.resident >= 0 and state.parked >= 0 for state in states)
        assert not any(state.resident and state.parked for state in states)
        assert {s.job for s in states if s.resident and not s.running} <= set(kv.idle)

    def _step(self) -> None:
        scheduler = self.scheduler
        waiting = [s for s in scheduler.segments.values() if s.id in scheduler.queue]
        assert self._waiting_tokens == sum(s.context for s in waiting)
        for segment in waiting:
            assert segment.restore_s == self._restore_s(self._by_segment[segment.id])
        running = scheduler.running.values()
        if scheduler.policy.name == "fcfs" and waiting and len(running) < self.machine.slots:
            first = min(waiting, key=lambda s: (s.arrived, s.id))
            # What was admitted together had to fit with all its output; each may be a token off by rounding.
            room = self.machine.cells - sum(s.context + s.remaining_output + 1 for s in running)
            growth = first.remaining_output if running else 1
            assert first.context + growth > room, "a slot is empty, and the first in line would fit"
        super()._step()


def watched(setting: Setting, jobs: Sequence[SimJob]) -> SimResult:
    """The simulation with its books checked; every job must end once."""
    with mock.patch.object(experiment, "Simulation", Watched):
        result = simulate(setting, jobs)
    assert set(by_id(result)) == {each.id for each in jobs}
    return result


# --- by hand ------------------------------------------------------------------------------------


def test_two_jobs_on_one_slot() -> None:
    """First come, first served; the tool wait of one is time for the other.

    A: prompt 0 to 1.0 s, two more steps to 1.2, tool to 2.2, 20 new tokens and the last of the output to
    2.41. B comes at 0.5, waits for the slot until 1.2, prompt to 1.7.
    """
    result = watched(
        Setting("fcfs", machine(), retention="lru"),
        [job("a", (100, 3, 1.0), (20, 1)), job("b", (50, 1), at=0.5)],
    )
    first, second = by_id(result)["a"], by_id(result)["b"]
    assert (first.jct_s, second.jct_s) == pytest.approx((2.41, 1.2))
    assert (first.queued_s, first.tool_s) == (0.0, 1.0)
    # It counts from the step after its arrival on: the machine does not look in between.
    assert (second.queued_s, second.tool_s) == pytest.approx((0.2, 0.0))
    assert result.makespan_s == pytest.approx(2.41)
    assert result.busy_s == pytest.approx(1.7 + 0.21)
    assert (result.prefilled, result.recomputed, result.decoded) == (100 + 50 + 21, 0, 5)


@pytest.mark.parametrize(("sequences", "again"), [(2, 0.0), (1, 1.1)])
def test_a_short_job_takes_the_slot_of_a_long_one(sequences: int, again: float) -> None:
    """Least remaining work first; where only one KV can be resident, the other is computed again.

    A has its prompt at 1.0 and ten steps more at 2.0, when it is seen that B came at 1.95; B ends at 2.1. A
    then needs 90 steps, and before them the 110 tokens that it had where they were dropped.
    """
    result = watched(
        Setting("oracle", machine(sequences=sequences), retention="keep"),
        [job("a", (100, 101)), job("b", (10, 1), at=1.95)],
    )
    first, second = by_id(result)["a"], by_id(result)["b"]
    assert second.jct_s == pytest.approx(0.15)
    # The last token's own step becomes part of the prefill.
    steps = 8.9 + 0.01 if again else 9.0
    assert first.jct_s == pytest.approx(2.1 + again + steps)
    assert (first.switches, second.switches) == (1, 0)
    assert (result.recomputed, result.kv.drops) == ((110, 1) if again else (0, 0))


# --- one job on an empty machine ----------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_alone_a_job_takes_what_it_needs(policy: str, name: str) -> None:
    """Prefill, decode steps and tool waits, and nothing else."""
    on = replace(MACHINES[name](), batch=4096)
    for each in infercept(7, jobs=4, rate=1.0):
        alone = replace(each, arrival_s=3.0)
        (ended,) = watched(Setting(policy, on, retention="lru"), [alone]).jobs
        assert ended.jct_s == pytest.approx(least_s(alone, on) + tools_s(alone), rel=1e-9)
        assert ended.queued_s == 0


@pytest.mark.parametrize("name", MACHINES)
def test_a_long_prompt_is_computed_in_even_chunks(name: str) -> None:
    """With attention to the tokens before, the chunks decide what it costs."""
    on = replace(MACHINES[name](), batch=100)
    alone = job("a", (1234, 5, 0.5), (321, 2))
    (ended,) = watched(Setting("fcfs", on, retention="lru"), [alone]).jobs
    assert ended.jct_s == pytest.approx(least_s(alone, on, chunked=True) + 0.5, rel=1e-9)


def test_alone_without_its_kv_a_job_computes_everything_again() -> None:
    """As vLLM does without prefix caching."""
    on = a100_8b()
    alone = job("a", (200, 30, 2.0), (40, 10, 1.0), (5, 3))
    result = watched(Setting("fcfs", on, retention="drop"), [alone])
    assert result.jobs[0].jct_s == pytest.approx(least_s(alone, on, kept=False) + 3.0, rel=1e-9)
    assert result.prefilled == 200 + 270 + 285
    assert result.recomputed == 229 + 279
    assert result.kv.drops == 2


# --- many jobs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("rate", [0.2, 2.0, 20.0, 2000.0])
def test_any_load_is_worked_off(policy: str, rate: float) -> None:
    """No job gets lost or ends before it can."""
    on, jobs = a100_8b(slots=8), infercept(3, jobs=40, rate=rate)
    ended = by_id(watched(Setting(policy, on), jobs))
    for each in jobs:
        found = ended[each.id]
        assert found.jct_s >= (least_s(each, on) + tools_s(each)) * (1 - 1e-9)
        assert found.jct_s >= found.queued_s + found.tool_s - 1e-9
        assert found.tool_s == pytest.approx(tools_s(each))
        assert (found.kind, found.arrival_s, found.segments) == (each.kind, each.arrival_s, len(each.calls))


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_same_again_is_the_same(policy: str, noise: float) -> None:
    """Down to the last digit."""
    jobs = infercept(5, jobs=40, rate=20.0)
    setting = Setting(policy, a100_8b(slots=4), noise=noise, seed=2)
    assert simulate(setting, jobs) == simulate(setting, jobs)


def test_errors_of_predictions_depend_on_the_seed() -> None:
    """Another seed, other errors, another order."""
    jobs = infercept(5, jobs=40, rate=20.0)
    setting = Setting("sjf", a100_8b(slots=4), noise=1.0, seed=2)
    assert simulate(setting, jobs) != simulate(replace(setting, seed=3), jobs)


@pytest.mark.parametrize("retention", KEEPING)
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_with_room_enough_nothing_is_computed_twice(policy: str, retention: str) -> None:
    """Nor moved."""
    jobs = infercept(4, jobs=40, rate=20.0)
    result = watched(Setting(policy, a100_8b(slots=4), retention=retention), jobs)
    assert result.recomputed == 0
    assert (result.kv.parks, result.kv.drops, result.kv.moved_s) == (0, 0, 0.0)


def test_dropped_at_every_tool_call_everything_is_computed_again() -> None:
    """All of a context but the last token of the output, which was never computed."""
    jobs = infercept(4, jobs=40, rate=20.0)
    result = watched(Setting("fcfs", a100_8b(slots=4), retention="drop"), jobs)
    again = prompts = 0
    for each in jobs:
        context = 0
        for call in each.calls:
            again += max(0, context - 1)
            prompts += context + call.new_tokens
            context += call.new_tokens + call.output_tokens
    assert (result.recomputed, result.prefilled) == (again, prompts)
    assert result.kv.drops == sum(len(each.calls) - 1 for each in jobs)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_preemption_is_rare(policy: str) -> None:
    """Whoever gives way has received a quantum first; most policies let nobody give way."""
    levels = (100, 200, 400)
    settings = SchedulerSettings(preempt_factor=1.01, level_tokens=levels, plas_level_tokens=levels)
    jobs = infercept(4, jobs=60, rate=20.0)
    result = watched(Setting(policy, a100_8b(slots=2), settings, retention="lru"), jobs)
    switches = sum(ended.switches for ended in result.jobs)
    assert switches * settings.min_quantum_tokens <= result.prefilled + result.decoded
    assert (switches > 0) == (policy in ("astraea", "mlfq", "plas", "oracle"))


def test_progress_counts_finished_jobs() -> None:
    """Every hundred."""
    seen: list[int] = []
    simulate(Setting("fcfs", a100_8b()), infercept(1, jobs=250, rate=50.0), seen.append)
    assert [100 * (count // 100) for count in seen] == [100, 200]


# --- the limits of a machine --------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize(
    "large",
    [
        pytest.param(job("large", (301, 1)), id="prompt"),
        pytest.param(job("large", (200, 102)), id="output"),
        pytest.param(job("large", (200, 10, 1.0), (100, 2)), id="return"),
    ],
)
def test_a_job_larger_than_the_machine(policy: str, large: SimJob) -> None:
    """Alone or among others: it could never end."""
    others = [job(f"small {i}", (50, 20, 1.0), (10, 5), at=0.1 * i) for i in range(4)]
    for jobs in ([large], [*others, large]):
        with pytest.raises(ValueError, match="a job needs more than the machine's 300 cells"):
            simulate(Setting(policy, machine(cells=300, slots=2)), jobs)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_job_as_large_as_the_machine(policy: str) -> None:
    """It ends, and so do the others."""
    jobs = [job(f"{i}", (100, 50, 0.5), (100, 50), at=0.1 * i) for i in range(4)]
    watched(Setting(policy, machine(cells=300, slots=2)), jobs)


def test_a_prefix_that_became_known_needs_room() -> None:
    """A preempted job comes back to more shared tokens than it had computed: an idle state gives way."""
    lost: list[str] = []
    lru = make("lru", RetentionSettings(), watermark=1.0)
    kv = SimKv(machine(cells=100), lru, lambda: (0, 0), lambda state: lost.append(state.job))
    first, second = State("a", 0.0), State("b", 0.0)
    for state, tokens in ((first, 10), (second, 85)):
        kv.occupy(state, tokens, 1.0)
        kv.release(state, 2.0, None, 0.0)
    kv.occupy(first, 40, 3.0)
    assert (kv.used, first.resident, second.parked, lost) == (40, 40, 85, ["b"])
    assert (kv.stats.parks, kv.stats.restores) == (1, 0)


def test_idle_tokens_of_a_pool_slow_the_steps() -> None:
    """A's 102 tokens lie idle while B has a prompt of 0.5 s, then ten steps of 0.1 s."""
    taxed = replace(ROUND, idle_token_s=0.001)
    jobs = [job("a", (100, 3, 50.0), (20, 1)), job("b", (50, 11), at=2.0)]
    for sequences, tax in ((1000, 0.102), (2, 0.102), (1, 0.0)):
        result = watched(Setting("fcfs", machine(speeds=taxed, sequences=sequences), retention="lru"), jobs)
        assert by_id(result)["b"].jct_s == pytest.approx(1.5 + 11 * tax, rel=0.01)


def test_a_state_is_moved_when_its_time_has_come() -> None:
    """Kept at first because the wait is mostly short; asked again at the time that the policy named."""
    lost: list[str] = []
    adaptive = make("adaptive", RetentionSettings(), watermark=1.0)
    taxed = replace(ROUND, idle_token_s=0.001)
    kv = SimKv(machine(speeds=taxed, slots=2), adaptive, lambda: (0, 0), lambda state: lost.append(state.job))
    waits, runs = State("a", 0.0), State("b", 0.0)
    kv.occupy(waits, 100, 0.0)
    kv.occupy(runs, 100, 0.0)
    assert kv.release(waits, 1.0, Distribution.of([1e-4] * 9 + [600.0]), 0.0) == 0.0
    assert kv.next_ask == pytest.approx(1.0001)
    assert kv.ask(1.00005) == 0.0
    assert lost == []
    assert kv.ask(1.001) == pytest.approx(taxed.save(100))
    assert (lost, waits.parked, kv.used, kv.next_ask) == (["a"], 100, 100, math.inf)


def test_unknown_names() -> None:
    """Answered with the known ones."""
    with pytest.raises(ValueError, match="no policy named 'fifo': choose one of astraea, "):
        simulate(Setting("fifo", a100_8b()), infercept(1, jobs=1, rate=1.0))
    with pytest.raises(ValueError, match="no retention named 'hold': choose one of drop, keep, "):
        simulate(Setting("fcfs", a100_8b(), retention="hold"), infercept(1, jobs=1, rate=1.0))


@st.composite
def small(draw: st.DrawFn) -> tuple[Setting, list[SimJob]]:
    """A few jobs, and a machine on which the longest of them just fits, or a little more."""
    jobs = []
    tokens = st.integers(1, 40)
    shared = draw(st.integers(0, 40))
    for index in range(draw(st.integers(1, 8))):
        calls = draw(
            st.lists(
                st.builds(Call, tokens, tokens, st.just("tool"), st.sampled_from([0.0, 0.1, 1.0, 20.0])),
                min_size=1,
                max_size=4,
            )
        )
        calls[0] = replace(calls[0], new_tokens=calls[0].new_tokens + shared)
        calls[-1] = replace(calls[-1], tool="", tool_s=0.0)
        at = draw(st.sampled_from([0.0, 0.3, 1.0, 5.0]))
        jobs.append(SimJob(str(index), draw(st.sampled_from("xy")), at, shared, tuple(calls)))
    jobs.sort(key=lambda each: each.arrival_s)
    slots = draw(st.integers(1, 4))
    on = machine(
        speeds=replace(
            ROUND, step_segment_s=0.01, prefill_pair_s=1e-5, save_bytes_s=2e7, restore_bytes_s=5e6
        ),
        slots=slots,
        cells=max(each.context_tokens for each in jobs) + draw(st.integers(0, 100)),
        sequences=slots + draw(st.sampled_from([0, 1, 100])),
        batch=draw(st.integers(8, 64)),
        shares=draw(st.booleans()),
        signals_end=draw(st.booleans()),
    )
    scheduler = SchedulerSettings(
        level_tokens=(30, 60),
        plas_level_tokens=(30, 60),
        paper_quota_tokens=(20, 40),
        paper_refill=draw(st.booleans()),
        min_quantum_tokens=draw(st.sampled_from([1, 8, 64])),
        preempt_factor=draw(st.sampled_from([1.01, 3.0])),
        predicted_output_tokens=draw(st.sampled_from([1, 80])),
    )
    setting = Setting(
        draw(st.sampled_from(POLICY_NAMES)),
        on,
        scheduler,
        draw(st.sampled_from(RETENTION_NAMES)),
        noise=draw(st.sampled_from([0.0, 1.0])),
        exact_limits=draw(st.booleans()),
    )
    return setting, jobs


@settings(max_examples=300, deadline=None)
@given(small())
def test_the_books_are_right_on_small_machines(drawn: tuple[Setting, list[SimJob]]) -> None:
    """Every policy with every retention, where room is short."""
    setting, jobs = drawn
    result = watched(setting, jobs)
    stats = result.kv
    assert stats.restores <= stats.parks
    assert result.recomputed <= result.prefilled
    assert 0 <= stats.moved_s <= result.busy_s
    assert result.busy_s <= result.makespan_s * (1 + 1e-9)
    assert result.decoded == sum(call.output_tokens for each in jobs for call in each.calls)
