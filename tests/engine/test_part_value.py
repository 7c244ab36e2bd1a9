"""What losing a parked state would cost."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from astraea_local.engine.kv.parts import Part, PartTree
from astraea_local.engine.part_value import part_value
from astraea_local.scheduler.speeds import Speeds


@dataclass
class FewFacts:
    """Knows speeds, and which jobs are expected back."""

    useful: set[str] = field(default_factory=set)

    def speeds(self) -> Speeds:
        return Speeds()

    def is_useful(self, job: str | None) -> bool:
        return job in self.useful


def _conversation() -> tuple[Part, Part]:
    """Two parts, of which job `a` owns the second; both were used at 100 s."""
    tree, tokens = PartTree(), np.arange(300, dtype=np.int32)
    first = tree.add(None, 0, tokens[:200], 1000, 100.0)
    second = tree.add(first, 200, tokens[200:], 1000, 100.0)
    tree.own("a", second, 300)
    return first, second


def test_a_state_that_will_be_asked_for_is_worth_its_prefill() -> None:
    first, second = _conversation()
    facts = FewFacts({"a"})
    assert part_value(second, facts, 5000.0) == pytest.approx(Speeds().prefill(100, 200))
    assert part_value(first, facts, 5000.0) == pytest.approx(Speeds().prefill(200, 0))


def test_one_that_nobody_owns_is_worth_a_twentieth_and_half_of_that_after_ten_minutes() -> None:
    first, _second = _conversation()
    whole = Speeds().prefill(200, 0)
    assert part_value(first, FewFacts(), 100.0) == pytest.approx(whole / 20)
    assert part_value(first, FewFacts(), 700.0) == pytest.approx(whole / 40)
