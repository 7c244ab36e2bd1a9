"""Computes one batch of a step with llama.cpp, and samples where a context is complete."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from astraea_local.engine.batcher import Batcher, Output, load_of
from astraea_local.engine.binding import Candidates, Context
from astraea_local.engine.lifecycle import Lifecycle
from astraea_local.engine.run import Run
from astraea_local.engine.slots import SequenceTable
from astraea_local.engine.speed import SpeedMeter
from astraea_local.frame import Totals
from astraea_local.scheduler.scheduler import Scheduler


class EngineFault(Exception):
    """llama.cpp failed in a way that leaves its memory unknown; the process must be restarted."""


@dataclass(slots=True)
class StepTime:
    """Where the time of the last steps went, seconds."""

    steps: int = 0
    total: float = 0.0
    decode: float = 0.0
    sampling: float = 0.0
    kv_moves: float = 0.0


@dataclass(slots=True)
class ModelRunner:
    """Advances the runs of one engine, whatever its context is."""

    batcher: Batcher
    candidates: Candidates
    scheduler: Scheduler
    lifecycle: Lifecycle
    meter: SpeedMeter
    totals: Totals
    times: StepTime
    clock: Callable[[], float]

    def compute(self, context: Context, table: SequenceTable, *, limit: int) -> bool:
        """Computes what comes next of those that have a sequence; `limit` bounds a job's context, tokens.

        False: there was nothing to compute, or no cell to put it in, and nothing has changed. Raises
        `EngineFault`.
        """
        order, batch = self.lifecycle.order, self.batcher.batch
        others = len(self.lifecycle.runs) > len(order)
        step = self.batcher.fill(order, table, self.meter.speeds, others=others)
        if not step.outputs:
            return False
        load = load_of(step.outputs)
        filled = time.perf_counter()
        code = context.decode(batch)
        context.synchronize()
        decoded = time.perf_counter()
        if code == 1:
            return False
        if code != 0:
            raise EngineFault(f"llama_decode returned {code}")
        for sequence in step.fillers:
            table.take_out(sequence)
        sampling = self._take(step.outputs, context, table, limit)
        self.meter.observe(
            decoded - filled,
            decoding=load.decoding,
            tokens=load.span,
            prefilled=load.prefilled,
            past=load.past,
        )
        self.totals.prefilled_tokens += load.prefilled
        self.totals.steps += 1
        self.times.decode += decoded - filled
        self.times.sampling += sampling
        return True

    def _take(self, outputs: Sequence[Output], context: Context, table: SequenceTable, limit: int) -> float:
        """Records what was computed, samples where a context is complete; returns seconds of sampling."""
        now = self.clock()
        sampling = 0.0
        ended: list[tuple[Run, str]] = []
        for output in outputs:
            run, tokens = output.run, output.tokens
            assert run.sequence is not None
            table.append(run.sequence, tokens)
            before = run.output
            if len(run.sequence.tokens) == len(run.context):
                self.lifecycle.stale.plan |= len(tokens) > 1
                began = time.perf_counter()
                reason = run.take(context.logits(output.index), self.candidates, limit, now)
                sampling += time.perf_counter() - began
                self.lifecycle.sampled(run, now, last=reason is not None)
                if reason is not None:
                    ended.append((run, reason))
            self.scheduler.advance(run.request.segment, computed=len(tokens), output=run.output - before)
            self.totals.decoded_tokens += run.output - before
        for run, reason in ended:
            self.totals.segments_finished += 1
            self.lifecycle.end(run, reason)
        return sampling
