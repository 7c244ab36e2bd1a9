"""How fast this model runs here: measured once after loading, corrected at every step."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from astraea_local.engine.binding import Batch, Context
from astraea_local.scheduler.predictor import Speeds

_GAIN = 0.05
_ROUNDS = 4
_FIRST = 32
_LONGEST = 256
# Long enough to see the effect of context, short enough for a start on a slow machine.
_BUDGET_S = 0.5
_MIN_PREFILL = 16


class SpeedMeter:
    """Keeps the shape of the measured step time and lets its height follow what is observed."""

    def __init__(self, speeds: Speeds) -> None:
        self.speeds = speeds

    def observe(self, seconds: float, *, decoding: int, tokens: int, prefilled: int) -> None:
        """Takes in one step.

        `decoding` segments with `tokens` of context together yielded one token each, and `prefilled`
        tokens of prompts were computed beside them.
        """
        expected = self.speeds.decode_step(decoding, tokens) if decoding else 0.0
        if prefilled >= _MIN_PREFILL and seconds > expected:
            seen = prefilled / (seconds - expected)
            rate = self.speeds.prefill_tokens_s
            self.speeds = replace(self.speeds, prefill_tokens_s=rate + _GAIN * (seen - rate))
        elif decoding and not prefilled:
            factor = 1 + _GAIN * (seconds / expected - 1)
            self.speeds = replace(
                self.speeds,
                step_base_s=self.speeds.step_base_s * factor,
                step_segment_s=self.speeds.step_segment_s * factor,
                step_token_s=self.speeds.step_token_s * factor,
            )

    def observe_restore(self, size: int, seconds: float) -> None:
        """Takes in a restore of `size` bytes."""
        if seconds > 0:
            rate = self.speeds.restore_bytes_s
            self.speeds = replace(self.speeds, restore_bytes_s=rate + _GAIN * (size / seconds - rate))


def measure(context: Context, batch: Batch, slots: int) -> Speeds:
    """Prefill speed, and the decode step by width and context; leaves the context empty.

    Takes about a second on a CPU, less on a GPU.
    """
    room = context.n_ctx // slots if context.params.unified else context.n_ctx_seq
    short = max(2, min(_FIRST, room // 4, batch.capacity))
    _prefill(context, batch, short)  # the first step of a context allocates: it is not what steps cost
    rate = short / _prefill(context, batch, short)
    rows = list(_decode_times(context, batch, slots))
    length = max(short, min(_LONGEST, batch.capacity, room - 2 * _ROUNDS, int(rate * _BUDGET_S)))
    rate = length / _prefill(context, batch, length)
    rows += _decode_times(context, batch, slots)
    context.clear()
    base, segment, token = _fit(rows)
    return Speeds(rate, base, segment, token)


def _prefill(context: Context, batch: Batch, length: int) -> float:
    """Seconds to compute `length` tokens in an empty context."""
    context.clear()
    batch.clear()
    batch.add(np.arange(length, dtype=np.int32) % context.n_vocab, 0, 0, last_logits=True)
    started = time.perf_counter()
    context.decode(batch)
    context.synchronize()
    return time.perf_counter() - started


def _decode_times(context: Context, batch: Batch, slots: int) -> Iterator[tuple[int, int, float]]:
    """(segments, tokens of context together, least seconds of a step) for several widths."""
    for seq in range(1, slots):
        context.seq_cp(0, seq)
    widths = sorted({w for w in (1, 2, 4, 8, 16, 32, 64) if w < slots} | {slots})
    best: dict[int, tuple[int, float]] = {}
    token = np.zeros(1, dtype=np.int32)
    for _round in range(_ROUNDS):
        # Rounds over all widths, and the least of each: a busy moment must not bend the curve.
        for width in widths:
            batch.clear()
            ends = [context.seq_end(seq) for seq in range(width)]
            for seq, end in enumerate(ends):
                batch.add(token, end, seq, last_logits=True)
            started = time.perf_counter()
            if context.decode(batch) != 0:
                continue
            context.synchronize()
            seconds = time.perf_counter() - started
            if width not in best or seconds < best[width][1]:
                best[width] = (sum(ends), seconds)
    for width, (tokens, seconds) in best.items():
        yield width, tokens, seconds


def _fit(rows: list[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Least squares of seconds = base + segments x a + tokens x b, none of them negative."""
    data = np.array(rows, dtype=np.float64)
    matrix = np.column_stack([np.ones(len(data)), data[:, 0], data[:, 1]])
    columns = [0, 1, 2]
    while True:
        part, *_ = np.linalg.lstsq(matrix[:, columns], data[:, 2], rcond=None)
        if (part >= 0).all() or len(columns) == 1:
            break
        columns.pop(int(part.argmin()))
    found = dict(zip(columns, part.tolist(), strict=True))
    return found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0)
