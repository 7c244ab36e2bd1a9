"""Builds the batch of one step: every decode first, then a bounded amount of prefill in policy order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from astraea_local.engine.binding import Batch, Tokens
from astraea_local.engine.run import Run
from astraea_local.engine.slots import Sequence as SlotSequence
from astraea_local.engine.slots import SequenceTable
from astraea_local.scheduler.batching import even_chunk, prefill_budget
from astraea_local.scheduler.speeds import Speeds


@dataclass(frozen=True, slots=True)
class Output:
    """A run's tokens in a batch, and the batch index of the last one."""

    run: Run
    tokens: Tokens
    index: int


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

    def fill(
        self, order: Sequence[Run], table: SequenceTable, speeds: Speeds, *, others: bool
    ) -> list[Output]:
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
        return self._put(chosen)

    def _put(self, chosen: list[tuple[Run, Tokens]]) -> list[Output]:
        """Fills the batch by sequence id: a context with a stream for each sequence computes only those
        together that follow each other so (`llama_batch_allocr::split_equal`).
        """
        self.batch.clear()
        outputs = []
        for run, tokens in sorted(chosen, key=lambda pair: _sequence_of(pair[0]).id):
            sequence = _sequence_of(run)
            last = len(sequence.tokens) + len(tokens) == len(run.context)
            index = self.batch.add(tokens, len(sequence.tokens), sequence.id, last_logits=last)
            outputs.append(Output(run, tokens, index))
        return outputs

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
