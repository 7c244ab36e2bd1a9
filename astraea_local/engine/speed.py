"""How fast this model runs here: measured briefly after loading, corrected at every step.

A calibration (`engine.calibrate`) measures the same constants with more care.
"""

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from astraea_local.engine.binding import Batch, Bytes, Context, Model, build_info
from astraea_local.profile import Profile
from astraea_local.scheduler.speeds import Speeds

_GAIN = 0.05
# One step may have met a busy moment of the machine: it must not count for more than this factor.
_OUTLIER = 4.0
_ROUNDS = 4
_FIRST = 32
_LONGEST = 256
# Long enough to see the effect of context, short enough for a start on a slow machine.
_BUDGET_S = 0.35
_MIN_PREFILL = 16
# Share of the most efficient batch's time per token that is the token's own at least, whatever a fit says.
_LEAST_SHARE = 0.01


class SpeedMeter:
    """Keeps the shape of the measured times and lets their height follow what is observed."""

    def __init__(self, speeds: Speeds) -> None:
        self.speeds = speeds

    def observe(self, seconds: float, *, decoding: int, tokens: int, prefilled: int, past: int = 0) -> None:
        """Takes in one step.

        `decoding` segments with `tokens` of context together yielded one token each, and `prefilled`
        tokens of prompts, with `past` tokens before them on average, were computed beside them.
        """
        s = self.speeds
        step = s.decode_step(decoding, tokens) if decoding else 0.0
        if prefilled >= _MIN_PREFILL and seconds > step:
            factor = _correction((seconds - step) / s.prefill(prefilled, past))
            self.speeds = replace(
                s,
                prefill_base_s=s.prefill_base_s * factor,
                prefill_token_s=s.prefill_token_s * factor,
                prefill_pair_s=s.prefill_pair_s * factor,
            )
        elif decoding and not prefilled:
            factor = _correction(seconds / step)
            self.speeds = replace(
                s,
                step_base_s=s.step_base_s * factor,
                step_segment_s=s.step_segment_s * factor,
                step_token_s=s.step_token_s * factor,
                idle_token_s=s.idle_token_s * factor,
            )

    def observe_save(self, size: int, seconds: float) -> None:
        """Takes in the copying of `size` bytes to host memory."""
        if size > 0 and seconds > 0:
            rate = self.speeds.save_bytes_s
            self.speeds = replace(self.speeds, save_bytes_s=rate * _correction(size / seconds / rate))

    def observe_restore(self, size: int, seconds: float) -> None:
        """Takes in the copying of `size` bytes back from host memory."""
        if size > 0 and seconds > 0:
            rate = self.speeds.restore_bytes_s
            self.speeds = replace(self.speeds, restore_bytes_s=rate * _correction(size / seconds / rate))


def _correction(ratio: float) -> float:
    """The factor that takes in a ratio of seen to expected: in the long run their geometric mean."""
    return float(min(max(ratio, 1 / _OUTLIER), _OUTLIER) ** _GAIN)


def measure(context: Context, batch: Batch, slots: int) -> Speeds:
    """Prefill, the decode step by width and context, and copies to RAM; leaves the context empty.

    Takes one to two seconds on a CPU, less on a GPU. The residency tax and the disk are left to `calibrate`.
    """
    room = context.n_ctx // slots if context.params.unified else context.n_ctx_seq
    short = max(2, min(_FIRST, room // 4, batch.capacity))
    context.clear()
    prefill(context, batch, short)  # the first step of a context allocates: it is not what steps cost
    context.clear()
    first = prefill(context, batch, short)
    steps = list(_decode_times(context, batch, slots))
    # A chunk, half of it again behind the first, and the decode steps that follow.
    limit = (room - 2 * _ROUNDS) * 2 // 3
    length = max(short, min(_LONGEST, batch.capacity, limit, int(short / first * _BUDGET_S)))
    half = max(1, length // 2)
    best = [first, float("inf"), float("inf")]
    for _round in range(2):
        context.clear()
        best[1] = min(best[1], prefill(context, batch, length))
        best[2] = min(best[2], prefill(context, batch, half))
    steps += _decode_times(context, batch, slots)
    chunks = [(short, 0, best[0]), (length, 0, best[1]), (half, length, best[2])]
    base, token, pair = fit_prefill([chunk for chunk in chunks if chunk[2] < float("inf")])
    step_base, segment, step_token = fit_steps(steps)
    speeds = Speeds(
        prefill_base_s=base,
        prefill_token_s=token,
        prefill_pair_s=pair,
        step_base_s=step_base,
        step_segment_s=segment,
        step_token_s=step_token,
    )
    tokens = context.seq_end(0)
    size, saving, loading = copy_times(context, np.empty(context.state_size(0), dtype=np.uint8))
    context.clear()
    if size == 0:
        return speeds
    return replace(
        speeds, save_bytes_s=size / saving, restore_bytes_s=size / loading, kv_token_bytes=size / tokens
    )


def prefill(context: Context, batch: Batch, length: int, seq: int = 0) -> float:
    """Seconds to compute `length` more tokens of a sequence in one batch; infinite when it was refused."""
    batch.clear()
    tokens = np.arange(length, dtype=np.int32) % context.n_vocab
    batch.add(tokens, context.seq_end(seq), seq, last_logits=True)
    return _timed_decode(context, batch)


def decode_step(context: Context, batch: Batch, width: int) -> float:
    """Seconds of a step of the sequences below `width`; infinite when it was refused."""
    batch.clear()
    token = np.zeros(1, dtype=np.int32)
    for seq in range(width):
        batch.add(token, context.seq_end(seq), seq, last_logits=True)
    return _timed_decode(context, batch)


def _timed_decode(context: Context, batch: Batch) -> float:
    started = time.perf_counter()
    code = context.decode(batch)
    context.synchronize()
    return time.perf_counter() - started if code == 0 else float("inf")


def copy_times(context: Context, buffer: Bytes, rounds: int = 2) -> tuple[int, float, float]:
    """Bytes of sequence 0's state, and the least seconds to copy it to `buffer` and back.

    The first copy is not counted: it maps the pages of a fresh buffer.
    """
    size = context.state_save(0, buffer)
    saving = loading = float("inf")
    for _round in range(rounds):
        started = time.perf_counter()
        context.state_save(0, buffer)
        saved = time.perf_counter()
        context.seq_rm(0)
        emptied = time.perf_counter()
        context.state_load(0, buffer[:size])
        loading = min(loading, time.perf_counter() - emptied)
        saving = min(saving, saved - started)
    return size, saving, loading


def widths_up_to(slots: int) -> list[int]:
    """Batch widths worth measuring: powers of two, and all slots."""
    return sorted({1 << bit for bit in range(slots.bit_length())} | {slots})


def _decode_times(context: Context, batch: Batch, slots: int) -> Iterator[tuple[int, int, float]]:
    """(segments, tokens of context together, least seconds of a step) for several widths."""
    # Not by `seq_cp`: sequences that share cells are cheaper in a unified pool than jobs of their own.
    state = np.empty(context.state_size(0), dtype=np.uint8)
    state = state[: context.state_save(0, state)]
    for seq in range(1, slots):
        context.state_load(seq, state)
    best: dict[int, tuple[int, float]] = {}
    for _round in range(_ROUNDS):
        # Rounds over all widths, and the least of each: a busy moment must not bend the curve.
        for width in widths_up_to(min(slots, batch.capacity)):
            tokens = sum(context.seq_end(seq) for seq in range(width))
            seconds = decode_step(context, batch, width)
            if seconds < best.get(width, (0, float("inf")))[1]:
                best[width] = (tokens, seconds)
    for width, (tokens, seconds) in best.items():
        yield width, tokens, seconds


def fit_prefill(rows: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """(base, token, pair) of `Speeds.prefill` from rows of (new, past, seconds)."""
    # Behind nothing, or next to nothing, attention cannot be told from the rest.
    shown = max(past for _new, past, _s in rows) >= max(new for new, _past, _s in rows) / 2
    terms = [(1.0, new, new * (past + 0.5 * new) * shown) for new, past, _s in rows]
    base, token, pair = fit(terms, _seconds(rows))
    # Where the fit sees nothing but the batch and attention, a token still takes time: its rate is asked for.
    least = _LEAST_SHARE * min(seconds / new for new, _past, seconds in rows)
    return base, max(token, least), pair


def fit_steps(rows: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """(base, segment, token) of `Speeds.decode_step` from rows of (segments, tokens, seconds)."""
    # With contexts of one length, what each token takes cannot be told from what each segment takes.
    each = [tokens / width for width, tokens, _s in rows]
    shown = max(each) >= 1.5 * min(each)
    base, segment, token = fit([(1.0, width, tokens * shown) for width, tokens, _s in rows], _seconds(rows))
    if base == segment == 0.0:
        # Where the fit sees nothing but contexts, a step without any still takes time: its rate is asked for.
        base = _LEAST_SHARE * min(seconds / width for width, _tokens, seconds in rows)
    return base, segment, token


def _seconds(rows: Sequence[tuple[int, int, float]]) -> list[float]:
    return [row[2] for row in rows]


def fit(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Least squares of the relative errors of seconds = sum(term x coefficient), none of them negative.

    `terms` has a row for each of `seconds` and a column for each coefficient.
    """
    matrix = np.array(terms, dtype=np.float64) / np.array(seconds)[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    matrix /= scale
    count = matrix.shape[1]
    best, least = np.zeros(count), float("inf")
    # With three or four terms every choice of those that are not zero can be tried: the best choice
    # without a negative coefficient is the constrained optimum.
    for size in range(count, 0, -1):
        for columns in combinations(range(count), size):
            part, *_ = np.linalg.lstsq(matrix[:, columns], np.ones(len(seconds)), rcond=None)
            error = float(((matrix[:, columns] @ part - 1) ** 2).sum())
            if (part >= 0).all() and error < least - 1e-15:
                best, least = np.zeros(count), error
                best[list(columns)] = part
    return [float(value) for value in best / scale]


def device_of(model: Model, profile: Profile, threads: int) -> str:
    """What the speeds of this process depend on: the GPUs that it uses, the CPU, and its threads."""
    parts = []
    # Devices are only looked at when the model already is on one: the look itself takes memory of theirs.
    if model.offloaded != "none" and not model.offloaded.startswith("0/"):
        gpus = [device.description for device in build_info().devices if device.is_gpu]
        chosen = gpus[profile.model.main_gpu :][:1] if profile.model.split == "none" else gpus
        parts += chosen or gpus
    parts.append(f"{_cpu_name()}, {threads} thread{'' if threads == 1 else 's'}")
    return " + ".join(parts)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
