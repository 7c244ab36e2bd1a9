"""What one batch changes."""

import pytest

from astraea_local.engine.model_runner import EngineFault
from tests.engine.harness import MakeHarness, prompt


def test_a_step_counts_what_it_computed(harness: MakeHarness) -> None:
    h = harness()
    h.submit("a", prompt(1, 50), 8)
    h.core.step()
    assert (h.core.totals.prefilled_tokens, h.core.totals.decoded_tokens) == (50, 1)
    h.core.step()
    assert (h.core.totals.prefilled_tokens, h.core.totals.decoded_tokens) == (50, 2)
    times = h.core.step_time
    assert (times.steps, h.core.totals.steps) == (2, 2)
    assert times.total >= times.decode + times.sampling > 0


def test_an_error_of_llama_cpp_is_a_fault(harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    h = harness()
    h.submit("a", prompt(1, 50), 8)
    monkeypatch.setattr(h.context, "decode", lambda _batch: -3)
    with pytest.raises(EngineFault, match="-3"):
        h.core.step()


def test_a_full_sequence_of_its_own_is_a_fault(harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jobs share no pool, llama.cpp always has the cells that were promised."""
    h = harness(kv__layout="per_slot")
    h.submit("a", prompt(1, 50), 8)
    monkeypatch.setattr(h.context, "decode", lambda _batch: 1)
    with pytest.raises(EngineFault, match="no room"):
        h.core.step()
