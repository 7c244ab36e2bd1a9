"""Builds the batch of one step: every decode first, then a bounded amount of prefill in policy order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from astraea_local.engine import passes
from astraea_local.engine.binding import Batch, Tokens
from astraea_local.engine.run import Run
from astraea_local.engine.slots import Sequence as SlotSequence
from astraea_local.engine.slots import SequenceTable
from astraea_local.scheduler.batching import even_chunk, prefill_budget
from astraea_local.scheduler.speeds import Speeds

_NO_USE = np.zeros(1, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Output:
    """A run's tokens in a batch, and the batch index of the last one."""

    run: Run
    tokens: Tokens
    index: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is in a batch."""

    outputs: list[Output]
    fillers: list[SlotSequence]
    """Idle sequences with a token of no use, to be taken out after the step (`passes.py`)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a batch holds, for the measured speeds."""

    decoding: int
    """Segments that yield a token."""
    span: int
    """Tokens of context that these attend to."""
    prefilled: int
    past: int
    """Tokens before those that are prefilled, on average over them."""


@dataclass(slots=True)
class Batcher:
    """Fills the batch; `make_room(cells)` frees cells of a common pool as far as this step's time allows."""

    batch: Batch
    max_step_s: float
    make_room: Callable[[int], None]

    def fill(self, order: Sequence[Run], table: SequenceTable, speeds: Speeds, *, others: bool) -> Step:
        """Puts what is computed next into the batch; `others` says whether anyone waits for a slot."""
        prefilling = [run for run in order if not run.decoding]
        chosen = [(run, run.pending) for run in order if run.decoding]
        if prefilling:
            budget = self._budget(prefilling, len(chosen), table, speeds, others=others)
            for run in prefilling:
                if budget <= 0:
                    break
                tokens = run.pending[: even_chunk(len(run.pending), budget)]
                budget -= len(tokens)
                chosen.append((run, tokens))
        else:
            self._cells(table, 0, len(chosen))
        # Beside a prefill one pass more or less is nothing.
        return self._put(chosen, [] if prefilling else _fillers(order, table, speeds))

    def _put(self, chosen: list[tuple[Run, Tokens]], fillers: list[SlotSequence]) -> Step:
        """By sequence id, so that neighbors are computed in one pass, whatever the policy's order is."""
        self.batch.clear()
        tokens_of = {_sequence_of(run).id: (run, tokens) for run, tokens in chosen}
        outputs = []
        for sequence in sorted([_sequence_of(run) for run, _ in chosen] + fillers, key=lambda s: s.id):
            if sequence.id not in tokens_of:
                self.batch.add(_NO_USE, len(sequence.tokens), sequence.id, last_logits=False)
                continue
            run, tokens = tokens_of[sequence.id]
            last = len(sequence.tokens) + len(tokens) == len(run.context)
            index = self.batch.add(tokens, len(sequence.tokens), sequence.id, last_logits=last)
            outputs.append(Output(run, tokens, index))
        return Step(outputs, fillers)

    def _budget(
        self, prefilling: Sequence[Run], decoding: int, table: SequenceTable, speeds: Speeds, *, others: bool
    ) -> int:
        """Tokens of prefill that keep the step within its limit for those who wait."""
        missing = sum(len(run.pending) for run in prefilling)
        room = self._cells(table, min(self.batch.capacity - decoding, missing), decoding)
        if not (decoding or others):
            return room
        tokens = sum(len(s.tokens) for s in table if s.segment is not None) if decoding else 0
        past = len(_sequence_of(prefilling[0]).tokens)
        budget = prefill_budget(speeds, self.max_step_s, decoding=decoding, tokens=tokens, past=past)
        return min(room, budget)

    def _cells(self, table: SequenceTable, wanted: int, decoding: int) -> int:
        if not table.unified:
            return wanted
        self.make_room(decoding + wanted)
        return max(0, min(wanted, table.cells_free - decoding))


def _fillers(order: Sequence[Run], table: SequenceTable, speeds: Speeds) -> list[SlotSequence]:
    computed = {_sequence_of(run).id: len(run.context) for run in order}
    # As in most steps: there is no gap.
    if table.unified or len(computed) == max(computed, default=-1) - min(computed, default=0) + 1:
        return []
    idle = {sequence.id: len(sequence.tokens) for sequence in table.fillable()}
    return [table.sequences[i] for i in passes.fillers(computed, idle, speeds)]


def _sequence_of(run: Run) -> SlotSequence:
    assert run.sequence is not None
    return run.sequence


def load_of(outputs: Sequence[Output]) -> Load:
    """What the batch of these outputs holds."""
    decoding = span = prefilled = weighted = 0
    for output in outputs:
        count = len(output.tokens)
        if count == 1:
            decoding += 1
            span += len(output.run.context)
        elif output.run.sequence is not None:
            prefilled += count
            weighted += count * len(output.run.sequence.tokens)
    return Load(decoding, span, prefilled, weighted // prefilled if prefilled else 0)
