"""Moves the states of a unified pool to its lowest cells, where the shorter span pays for it.

Every step attends over all cells up to the highest that is used.
"""

from dataclasses import dataclass

from astraea_local.engine.placement import Facts, Placer
from astraea_local.engine.slots import SequenceTable
from astraea_local.engine.stall import Stall

# Compaction has to pay for itself within so many steps, and is not tried more often.
_STEPS = 200
_CELLS = 256


@dataclass(slots=True)
class Compactor:
    """Remembers when it was tried last, whatever context it was in."""

    facts: Facts
    _tried_at: int = 0

    def compact(self, table: SequenceTable, placer: Placer, steps: int, stall: Stall) -> bool:
        """Whether the states were moved; `steps` is the number of those computed so far."""
        if not placer.transfer.sliced or steps - self._tried_at < _STEPS:
            return False
        gap = table.span - table.cells_used
        if gap < max(_CELLS, table.cells_used) or not self.facts.situation().running:
            return False
        speeds = self.facts.speeds()
        held = [s for s in table if len(s.tokens) and not s.reserved and not table.shares(s)]
        moved = sum(len(s.tokens) for s in held)
        self._tried_at = steps
        if gap * speeds.idle_token_s * _STEPS < speeds.save(moved) + speeds.restore(moved):
            return False
        if not all(placer.shift(sequence, stall) for sequence in held):
            return False
        if len(held) == sum(1 for s in table if len(s.tokens)):
            table.compacted()
        return True
