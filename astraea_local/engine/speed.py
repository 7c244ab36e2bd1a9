"""How fast this model runs here: measured once after loading, corrected at every step."""

import time
from types import MappingProxyType

import numpy as np

from astraea_local.engine.binding import Batch, Context
from astraea_local.scheduler.predictor import Speeds

_CONTEXT = 256
_ROUNDS = 5
_GAIN = 0.05
# Widths not seen for so many steps drift along with those that are: longer contexts slow all of them.
_STALE_STEPS = 200
_MIN_PREFILL = 16


class SpeedMeter:
    """Exponential averages of prefill speed and of the decode step by width."""

    def __init__(self, speeds: Speeds) -> None:
        self._prefill = speeds.prefill_tokens_s
        self._step = dict(speeds.step_s)
        self._seen = dict.fromkeys(self._step, 0)
        self._count = 0
        self._restore = speeds.restore_bytes_s

    @property
    def speeds(self) -> Speeds:
        """The present estimate."""
        return Speeds(self._prefill, MappingProxyType(dict(self._step)), self._restore)

    def observe(self, seconds: float, *, decoding: int, prefilled: int) -> None:
        """Takes in one step that decoded `decoding` segments and prefilled `prefilled` tokens."""
        self._count += 1
        if prefilled >= _MIN_PREFILL:
            rest = seconds - (self._estimate(decoding) if decoding else 0.0)
            if rest > 0:
                self._prefill += _GAIN * (prefilled / rest - self._prefill)
        elif decoding and not prefilled:
            self._observe_decode(seconds, decoding)

    def observe_restore(self, size: int, seconds: float) -> None:
        """Takes in a restore of `size` bytes."""
        if seconds > 0:
            self._restore += _GAIN * (size / seconds - self._restore)

    def _estimate(self, decoding: int) -> float:
        return self.speeds.decode_step(decoding)

    def _observe_decode(self, seconds: float, decoding: int) -> None:
        before = self._estimate(decoding)
        after = before + _GAIN * (seconds - before)
        for width in self._step:
            if width != decoding and self._count - self._seen[width] > _STALE_STEPS:
                self._step[width] *= after / before
        self._step[decoding] = after
        self._seen[decoding] = self._count


def measure(context: Context, batch: Batch, slots: int) -> Speeds:
    """Prefill and decode speed with short contexts; leaves the context empty."""
    room = context.n_ctx // slots if context.params.unified else context.n_ctx_seq
    length = max(8, min(_CONTEXT, batch.capacity, room - _ROUNDS * 8))
    tokens = np.arange(10, 10 + length, dtype=np.int32) % context.n_vocab
    for _warm_up in range(2):
        context.clear()
        started = time.perf_counter()
        batch.clear()
        batch.add(tokens, 0, 0, last_logits=True)
        context.decode(batch)
        context.synchronize()
        prefill = length / (time.perf_counter() - started)
    step: dict[int, float] = {}
    widths = sorted({w for w in (1, 2, 4, 8, 16, 32, 64) if w < slots} | {slots})
    for seq in range(1, slots):
        context.seq_cp(0, seq)
    for _round in range(_ROUNDS):
        # Rounds over all widths, and the least of each: a busy moment of the machine must not bend the curve.
        for width in widths:
            batch.clear()
            for seq in range(width):
                batch.add(tokens[:1], context.seq_end(seq), seq, last_logits=True)
            started = time.perf_counter()
            if context.decode(batch) != 0:
                break
            context.synchronize()
            step[width] = min(step.get(width, np.inf), time.perf_counter() - started)
    context.clear()
    return Speeds(prefill, MappingProxyType(step or {1: 1 / prefill}))
