"""States on their way back into the context."""

from astraea_local.engine.messages import Cancel
from tests.engine.harness import MakeHarness, prompt


def test_a_cancelled_restore_leaves_nothing_reserved(harness: MakeHarness) -> None:
    h = harness(context__slots=2, context__size=1024, kv__layout="unified", kv__max_stall_ms=0.001)
    first = h.ask("a", prompt(1, 400))
    h.ask("b", prompt(2, 400))
    h.ask("c", prompt(3, 300))
    segment = h.submit("a", [*prompt(1, 400), *first.output, 7])
    other = h.submit("d", prompt(4, 100), 30)
    for _ in range(3):
        h.core.step()
    h.core.cancel(Cancel(segment))
    h.run()
    assert h.finished(other).output_tokens == 30
    assert not any(s.reserved for s in h.core.table)
    assert all(part.busy == 0 for part in h.core.residency.store.tree)
