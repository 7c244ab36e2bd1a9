"""How large a step may be: the rules by which the engine and the simulator fill a batch."""

import math

from astraea_local.scheduler.speeds import Speeds

_MIN_CHUNK = 16


def prefill_budget(speeds: Speeds, max_step_s: float, *, decoding: int, tokens: int, past: int) -> int:
    """Prompt tokens, behind `past` others, that keep a step within `max_step_s`; at least 16.

    `decoding` segments with `tokens` of context together decode in the same step.
    """
    spare = max_step_s - speeds.prefill_base_s
    if decoding:
        spare -= speeds.decode_step(decoding, tokens)
    return max(_MIN_CHUNK, int(spare * speeds.prefill_rate(past)))


def even_chunk(pending: int, most: int) -> int:
    """Size of the next chunk when `pending` tokens are computed at most `most` at a time.

    Chunks of one size instead of full ones and a rest: a short rest costs a third more for each token on a
    CPU, where llama.cpp's flash attention works in tiles of 64.
    """
    return math.ceil(pending / math.ceil(pending / most))
