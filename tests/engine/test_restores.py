"""States on their way back into the context."""

import pytest

from astraea_local.engine.messages import Cancel
from astraea_local.engine.placement import Delay
from astraea_local.engine.slots import Sequence
from astraea_local.engine.stall import Stall
from tests.engine.harness import Harness, MakeHarness, prompt


def _step_until_placed(h: Harness, segment: int) -> int:
    """Steps until the segment has a sequence; returns how many that took."""
    for count in range(1, 20):
        h.core.step()
        if h.core.runs[segment].sequence is not None:
            return count
    raise AssertionError("it was never placed")


@pytest.mark.parametrize(("stall_ms", "steps"), [(1000, {1}), (0.001, {2, 3, 4})])
def test_one_state_leaves_and_another_comes_in_one_step_where_its_time_allows(
    harness: MakeHarness, stall_ms: float, steps: set[int]
) -> None:
    """Beside a stream that runs, and into memory that has to be found first."""
    h = harness(context__slots=2, context__size=1024, retention__policy="lru", kv__max_stall_ms=stall_ms)
    first = h.ask("a", prompt(1, 200))
    h.core.residency.park_now("a")
    h.ask("b", prompt(2, 200))
    h.submit("stream", prompt(3, 40), 60)
    h.core.step()
    back = h.submit("a", [*prompt(1, 200), *first.output, 7])
    assert _step_until_placed(h, back) in steps
    h.run()
    assert h.finished(back).cached_tokens >= 200


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


def test_who_decodes_takes_no_cells_from_a_state_on_its_way_back(harness: MakeHarness) -> None:
    """Else it could not be loaded to its end, and would be lost."""
    h = harness(context__slots=2, context__size=512, kv__layout="unified", kv__max_stall_ms=0.001)
    first = h.ask("a", prompt(1, 300))
    h.ask("b", prompt(2, 300))
    other = h.submit("c", prompt(3, 60), 120)
    h.core.step()
    segment = h.submit("a", [*prompt(1, 300), *first.output, 7], 30)
    h.run()
    assert h.finished(segment).cached_tokens >= 300
    assert h.finished(other).output_tokens == 120
    assert h.core.residency.store.stats.failures == 0
    assert h.core.table.promised == 0


def test_what_leaves_its_slot_is_not_what_was_put_there_meanwhile(harness: MakeHarness) -> None:
    """A state that was being copied out is dropped, and another is on its way into the same sequence."""
    h = harness(context__slots=2, context__size=2048, kv__layout="unified", retention__policy="lru")
    residency, table = h.core.residency, h.core.table
    first = h.ask("a", prompt(1, 200))
    residency.park_now("a")
    talk = [*prompt(1, 200), *first.output, *prompt(4, 30)]
    h.ask("a", talk)
    residency.park_now("a")
    h.ask("b", prompt(2, 300))
    h.ask("c", prompt(3, 300))
    little = 1e-9
    assert not residency.placer.make_room(table.cells_total, Stall(little))
    residency.drop("b")
    residency.drop("c")
    found = residency.store.tree.end_of("a")
    assert found is not None
    assert residency.placer.bring_back("a", *found, Stall(little)) is Delay.MOVING
    assert not residency.placer.make_room(table.cells_total, Stall(None))
    back = residency.placer.bring_back("a", *found, Stall(None))
    assert isinstance(back, Sequence)
    assert h.context.seq_end(back.id) == len(back.tokens) == found[1] >= len(talk)
