"""The timed rounds of a calibration on one context: what is measured, in which order, for how long.

Everything is measured in rounds over all points, and of each point the least time counts, so that a busy
moment of the machine bends no curve. When time is short the far points are left out, never the near
ones: without these there would be no speeds at all.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from astraea_local.calibration import Copies, PrefillRow, ResidencyRow, StepRow
from astraea_local.engine.binding import Batch, BindingError, Bytes, Context
from astraea_local.engine.speed import copy_times, decode_step, prefill, widths_up_to

Report = Callable[[float, str], None]

_ROUNDS = 4
_TIMED_STEPS = 3
_SMALLEST_CHUNK = 16
_SHORTEST_STATE = 64
_GROWTH = 4
# Cells that decode steps add to a sequence before it is filled anew.
_MARGIN = 1 + _TIMED_STEPS
# Of the memory that is available, for states.
_RAM_SHARE = 0.25
_NEAR_CHUNKS = 2
_NEAR_WIDTH = 2
_DISK_BYTES = 32 << 20


class Deadline:
    """An end, and how much of the time until then is gone."""

    def __init__(self, seconds: float) -> None:
        self._start = time.perf_counter()
        self._seconds = seconds

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long would end in time."""
        return time.perf_counter() + seconds <= self._start + self._seconds

    @property
    def share(self) -> float:
        """0 at the start, 1 at the end and after it."""
        return min(1.0, (time.perf_counter() - self._start) / max(self._seconds, 1e-9))

    @property
    def left(self) -> float:
        """Seconds until then, not negative."""
        return max(0.0, self._start + self._seconds - time.perf_counter())


@dataclass(frozen=True, slots=True)
class State:
    """The KV state of a context of `tokens`, in host memory: where a measurement begins."""

    tokens: int
    data: Bytes


@dataclass
class Rounds:
    """One context, and the states that were computed in it."""

    context: Context
    batch: Batch
    slots: int
    room: int
    """Tokens that a sequence may have while all slots are as long."""
    states: list[State] = field(default_factory=list)
    """By ascending length; filled by `measure_prefill` or `fill`, and never empty afterwards."""

    @property
    def chunks(self) -> list[int]:
        """Sizes of prefill batches: a small one, larger ones by a factor, the largest possible."""
        largest = max(2, min(self.batch.capacity, self.room // 2))
        size, sizes = min(_SMALLEST_CHUNK, largest // 2), []
        while size < largest:
            sizes.append(size)
            size *= _GROWTH
        return [*sizes, largest]

    @property
    def lengths(self) -> list[int]:
        """Context lengths to measure at, so that the largest chunk and some decode steps fit behind."""
        longest = max(1, self.room - self.chunks[-1] - _MARGIN)
        length, lengths = max(1, min(_SHORTEST_STATE, longest // 3)), []
        while 2 * length < longest:
            lengths.append(length)
            length *= _GROWTH
        return [*lengths, longest]

    def measure_prefill(self, deadline: Deadline, report: Report) -> list[PrefillRow]:
        """Times chunks behind contexts, and keeps the contexts as `states`."""
        best: dict[tuple[int, int], float] = {}
        self._extend(self.chunks[0])  # a context's first step allocates
        for new in self.chunks[:_NEAR_CHUNKS]:
            self._time_chunk(best, new, 0)
        # Long contexts before large chunks: without them nothing would be known of attention.
        self._compute(best, deadline, report)
        self._time_chunk(best, self.chunks[0], self.states[0].tokens)
        grid = [(new, past) for past in (0, *(s.tokens for s in self.states)) for new in self.chunks]
        for _round in range(_ROUNDS):
            for new, past in dict.fromkeys([*grid, *best]):
                if deadline.allows(best.get((new, past), _estimate(best, new))):
                    self._time_chunk(best, new, past)
                    report(deadline.share, f"prefill behind {past:,} tokens")
        return [PrefillRow(new=new, past=past, seconds=best[new, past]) for new, past in sorted(best)]

    def fill(self, rows: list[PrefillRow], deadline: Deadline, report: Report) -> None:
        """Computes the `states` of a context whose prefill takes what the `rows` say."""
        self._compute({(row.new, row.past): row.seconds for row in rows}, deadline, report)

    def measure_steps(self, deadline: Deadline, report: Report) -> list[StepRow]:
        """Times decode steps at every width, with each of the states in all sequences of a step."""
        best: dict[tuple[int, int], StepRow] = {}
        last = 0.0
        for turn in range(_ROUNDS):
            for state in self.states:
                self.context.clear()
                for width in widths_up_to(min(self.slots, self.batch.capacity)):
                    near = turn == 0 and state is self.states[0] and width <= _NEAR_WIDTH
                    if not near and not deadline.allows(2 * last):
                        break
                    began = time.perf_counter()
                    for seq in range(width):
                        self._load(seq, state)
                    row = self._least_step(width)
                    last = time.perf_counter() - began
                    key = (width, state.tokens)
                    if key not in best or row.seconds < best[key].seconds:
                        best[key] = row
                    report(deadline.share, f"decoding {width} wide, contexts of {state.tokens:,}")
        return [best[key] for key in sorted(best)]

    def measure_residency(self, deadline: Deadline, report: Report) -> list[ResidencyRow]:
        """Times steps of one short sequence beside none, some and as many idle tokens as fit."""
        running = self.states[0]
        idle, most = self._idle_state(running)
        best: dict[int, float] = {}
        last = 0.0
        for turn in range(_ROUNDS):
            for count in sorted({0, most // 2, most}):
                tokens = count * idle.tokens
                if (turn or count) and not deadline.allows(2 * last):
                    break
                began = time.perf_counter()
                self.context.clear()
                for seq in range(1, count + 1):
                    self._load(seq, idle)
                self._load(0, running)
                best[tokens] = min(best.get(tokens, float("inf")), self._least_step(1).seconds)
                last = time.perf_counter() - began
                report(deadline.share, f"decoding beside {tokens:,} idle tokens")
        return [ResidencyRow(idle=tokens, seconds=best[tokens]) for tokens in sorted(best)]

    def measure_copies(self) -> Copies:
        """The bandwidth of copying the longest state to host memory and back."""
        state = self.states[-1]
        self.context.clear()
        self._load(0, state)
        size, saving, loading = copy_times(self.context, state.data, rounds=_ROUNDS)
        return Copies(save=size / saving, restore=size / loading)

    def _extend(self, tokens: int, seq: int = 0) -> float:
        """Prefills `tokens` more, in as many batches as it takes; seconds. Raises `BindingError`."""
        seconds = 0.0
        while tokens > 0:
            part = min(tokens, self.batch.capacity)
            seconds += _checked(prefill(self.context, self.batch, part, seq))
            tokens -= part
        return seconds

    def _time_chunk(self, best: dict[tuple[int, int], float], new: int, past: int) -> None:
        self.context.clear()
        if past:
            self._load(0, next(state for state in self.states if state.tokens == past))
        best[new, past] = min(best.get((new, past), float("inf")), self._extend(new))

    def _compute(self, best: dict[tuple[int, int], float], deadline: Deadline, report: Report) -> None:
        """Computes the states one from another, as many as half of the time and the memory allow.

        What they took is put into `best` as far as one batch was enough.
        """
        end = Deadline(deadline.left / 2)
        spare = _RAM_SHARE * psutil.virtual_memory().available
        for length in self.lengths:
            start = self.states[-1] if self.states else State(0, np.empty(0, dtype=np.uint8))
            new = length - start.tokens
            if start.tokens:
                size = len(start.data) / start.tokens * length
                if size > spare or not end.allows(_estimate(best, new)):
                    return
                spare -= size
            report(deadline.share, f"computing {length:,} tokens")
            self.context.clear()
            if start.tokens:
                self._load(0, start)
            seconds = self._extend(new)
            if new <= self.batch.capacity:
                best.setdefault((new, start.tokens), seconds)
            data = np.empty(self.context.state_size(0), dtype=np.uint8)
            size = self.context.state_save(0, data)
            if size == 0:
                raise BindingError("llama.cpp cannot save the KV state of this model")
            self.states.append(State(length, data[:size]))

    def _load(self, seq: int, state: State) -> None:
        if not self.context.state_load(seq, state.data):
            raise BindingError(f"llama.cpp cannot restore a KV state of {state.tokens} tokens")

    def _least_step(self, width: int) -> StepRow:
        """The quickest of some steps; a first one, for which llama.cpp prepares its graph, is not counted."""
        _checked(decode_step(self.context, self.batch, width))
        tokens = sum(self.context.seq_end(seq) for seq in range(width))
        seconds = min(_checked(decode_step(self.context, self.batch, width)) for _ in range(_TIMED_STEPS))
        return StepRow(segments=width, tokens=tokens, seconds=seconds)

    def _idle_state(self, running: State) -> tuple[State, int]:
        """The state that idle sequences hold, and the largest number of them.

        The longest of which there is room for two; else the one that fills most.
        """
        params = self.context.params
        sequences = params.n_seq - 1

        def most(state: State) -> int:
            if not params.unified:
                return sequences
            return min(sequences, (self.context.n_ctx - running.tokens - _MARGIN) // state.tokens)

        several = [state for state in self.states if most(state) >= 2]
        idle = several[-1] if several else max(self.states, key=lambda s: most(s) * s.tokens)
        return idle, max(0, most(idle))


def _checked(seconds: float) -> float:
    """Raises `BindingError` for the infinite time of a batch that llama.cpp refused."""
    if seconds == float("inf"):
        raise BindingError(
            "llama.cpp refused a batch of the calibration: lower context.slots or context.batch"
        )
    return seconds


def _estimate(best: dict[tuple[int, int], float], tokens: int) -> float:
    """Seconds to prefill `tokens`, by the slowest of the largest chunks seen."""
    if not best:
        return 0.0
    largest = max(new for new, _past in best)
    return max(seconds / new for (new, _past), seconds in best.items() if new == largest) * tokens


def measure_disk(folder: Path, data: Bytes, copies: Copies) -> Copies:
    """`copies` with the bandwidth of writing states like `data` to a file in `folder` and reading it back.

    A write ends when the disk has it (fsync). Before reading the kernel is asked to forget the file where
    it can be asked (Linux); where it cannot, or does not follow, the read comes from the page cache and
    is much faster than the disk. The file has no name, so nothing can leave it behind. On an error of
    the disk the bandwidths stay None.
    """
    block = np.tile(data, -(-_DISK_BYTES // len(data)))[:_DISK_BYTES].data
    writing = reading = float("inf")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for _round in range(2):
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                started = time.perf_counter()
                written = 0
                while written < len(block):
                    written += file.write(block[written:])
                os.fsync(file.fileno())
                writing = min(writing, time.perf_counter() - started)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                file.seek(0)
                into = np.empty(_DISK_BYTES, dtype=np.uint8).data
                started = time.perf_counter()
                read = 0
                while read < len(into):
                    read += file.readinto(into[read:])
                reading = min(reading, time.perf_counter() - started)
        copies = Copies(
            save=copies.save,
            restore=copies.restore,
            disk_write=_DISK_BYTES / writing,
            disk_read=_DISK_BYTES / reading,
        )
    return copies
