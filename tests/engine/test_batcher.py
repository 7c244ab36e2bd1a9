"""What a step computes, and in which order llama.cpp gets it."""

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
    outputs = batcher.fill(order, h.core.table, h.core.meter.speeds, others=True)
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
