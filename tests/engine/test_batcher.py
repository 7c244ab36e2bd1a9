"""What a step computes, and in which order llama.cpp gets it."""

from dataclasses import replace

import pytest

from tests.engine.harness import Harness, MakeHarness, prompt


def _decoding(h: Harness, count: int) -> None:
    for i in range(count):
        h.submit(f"job{i}", prompt(i, 20), 100)
    while not all(run.sequence is not None and run.decoding for run in h.core.runs.values()):
        h.core.step()


def test_a_batch_follows_the_sequences_whatever_the_policy_s_order_is(harness: MakeHarness) -> None:
    """With a stream for each sequence, llama.cpp computes in one pass only those that follow each other."""
    h = harness(kv__layout="per_slot", scheduler__policy="fcfs")
    _decoding(h, 4)
    late = h.submit("late", prompt(9, 50), 4)
    batcher, runs = h.core._runner.batcher, list(h.core.runs.values())
    order = [runs[i] for i in (2, 0, 3, 1)]
    outputs = batcher.fill(order, h.core.table, h.core.meter.speeds, others=True).outputs
    assert [o.run.sequence.id for o in outputs if o.run.sequence is not None] == [0, 1, 2, 3]
    assert [o.index for o in outputs] == [0, 1, 2, 3]
    h.run()
    assert h.finished(late).output_tokens == 4


def test_an_empty_slot_next_to_one_that_runs_is_taken_first(harness: MakeHarness) -> None:
    h = harness(kv__layout="per_slot", scheduler__policy="fcfs")
    _decoding(h, 4)
    table = h.core.table
    ends = [run for run in h.core.runs.values() if run.sequence is not None and run.sequence.id != 2]
    for run in ends:
        h.core.lifecycle.end(run, "stop")
    for sequence in table.idle():
        table.clear(sequence)
    following = h.submit("following", prompt(7, 20), 4)
    h.core.step()
    taken = h.core.runs[following].sequence
    assert taken is not None
    assert taken.id == 1


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_idle_states_are_what_they_were_after_lending_their_place(harness: MakeHarness, kv_type: str) -> None:
    """A token fills the gap between those who run; nobody's answers change."""
    settings = {"kv__type_k": kv_type, "kv__type_v": kv_type, "scheduler__policy": "fcfs"}
    h, alone = harness(**settings), harness(**settings)
    talks = {f"job{i}": prompt(i, 60) for i in range(4)}
    for job, talk in talks.items():
        answer = h.ask(job, talk).output
        assert answer == alone.ask(job, talk).output
        alone.core.residency.park_now(job)
        talk += [*answer, 7]
    jobs = [sequence.job or "" for sequence in h.core.table]
    h.core.meter.speeds = replace(h.core.meter.speeds, step_base_s=1.0)
    segments = {job: h.submit(job, talks[job], 30) for job in (jobs[0], jobs[3])}
    h.core.step()
    batcher = h.core._runner.batcher
    step = batcher.fill(h.core.lifecycle.order, h.core.table, h.core.meter.speeds, others=False)
    assert [sequence.id for sequence in step.fillers] == [1, 2]
    h.run()
    for job, segment in segments.items():
        assert h.finished(segment).output == alone.ask(job, talks[job], 30).output
    for job in jobs[1:3]:
        again = h.ask(job, talks[job], 30)
        assert again.cached_tokens == len(talks[job]) - 2
        assert again.output == alone.ask(job, talks[job], 30).output
