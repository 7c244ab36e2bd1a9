"""Who gets a sequence and who gives one back, with llama.cpp really running."""

from astraea_local.engine.messages import Finished, Paused
from tests.engine.harness import MakeHarness, prompt


def test_a_shared_prefix_is_computed_once(harness: MakeHarness) -> None:
    """Jobs that arrive together with the same system prompt wait for the one that computes it."""
    h = harness()
    shared = prompt(0, 150)
    segments = [h.submit(f"job{i}", [*shared, *prompt(i + 1, 10)]) for i in range(4)]
    h.run()
    assert sorted(h.finished(s).cached_tokens for s in segments) == [0, 150, 150, 150]


def test_a_full_pool_pauses_one_and_fails_none(harness: MakeHarness) -> None:
    """Unified: four jobs of 400 tokens in a pool of 1,024 take turns through RAM, and all finish."""
    h = harness(kv__layout="unified", scheduler__policy="fcfs")
    segments = [h.submit(f"job{i}", prompt(i, 200), 200) for i in range(4)]
    h.run()
    assert [h.finished(s).output_tokens for s in segments] == [200] * 4
    assert h.core.table.cells_used <= 1024
    reference = harness(kv__layout="unified", scheduler__policy="fcfs")
    assert h.finished(segments[0]).output[:8] == reference.ask("job0", prompt(0, 200), 8).output


def test_prompts_that_do_not_fit_together_are_computed_in_turn(harness: MakeHarness) -> None:
    """Unified: none of them fails, though any two of them are more than the pool."""
    h = harness(kv__layout="unified", scheduler__policy="astraea", retention__ram_mib=0)
    segments = [h.submit(f"job{i}", prompt(i, 620), 30) for i in range(4)]
    h.run()
    assert [h.finished(s).output_tokens for s in segments] == [30] * 4


def test_a_preempted_segment_loses_nothing(harness: MakeHarness) -> None:
    """A short segment takes the only slot from a long one, which then goes on where it was."""
    changes = {
        "context__slots": 1,
        "context__size": 512,
        "scheduler__preempt_factor": 1.1,
        "scheduler__min_quantum_tokens": 4,
    }
    h = harness(**changes)
    long = h.submit("long", prompt(1, 40), 300)
    for _ in range(40):
        h.core.step()
    h.ahead_s = 1000
    short = h.submit("short", prompt(2, 20), 2)
    h.ahead_s = 2000
    h.run()
    assert [m.segment for m in h.messages if isinstance(m, Paused)] == [long]
    order = [m.segment for m in h.messages if isinstance(m, Finished)]
    assert order == [short, long]
    alone = harness(**changes).ask("long", prompt(1, 40), 300)
    assert h.finished(long).output_tokens == 300
    assert h.finished(long).output == alone.output
