"""The span of a pool, on a real context."""

from dataclasses import replace

from tests.engine.harness import MakeHarness, prompt


def test_a_pool_is_compacted_when_its_span_is_far_above_its_use(harness: MakeHarness) -> None:
    """Others left; the one that runs on moves to the lowest cells."""
    h = harness(context__slots=4, context__size=4096, kv__layout="unified", retention__policy="keep")
    # As if idle cells cost a lot here.
    h.core.meter.speeds = replace(h.core.meter.speeds, idle_token_s=1e-3)
    for seed in range(4):
        h.ask(f"job{seed}", prompt(seed, 800))
    late = h.submit("late", prompt(9, 100), 400)
    h.core.step()
    for seed in range(4):
        h.core.residency.drop(f"job{seed}")
    h.run()
    assert h.core.residency.stats.compactions >= 1
    assert h.core.table.span < 1200
    assert h.finished(late).output_tokens == 400
