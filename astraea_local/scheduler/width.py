"""How many segments to run at once: as many as pays, not as many as fit.

Of n segments of equal, known size S, run w at a time with total decode speed R(w), the k-th group ends after
k w S / R(w), so that on average a segment ends after (n + w) / 2 x S / R(w): running few at a time brings the
first ones home early. Of segments whose sizes cannot be told apart, any that runs is as likely to be short
as those that wait, nothing is gained by running few, and the mean is n / R(w). Real predictions lie
between.
"""

import math

from astraea_local.scheduler.speeds import Speeds

# How much of the gain of known sizes predictions keep; chosen in simulation (docs/scheduling.md).
_KNOWN = 0.7


def best_width(speeds: Speeds, slots: int, ready: int, context: float, *, known: float = _KNOWN) -> int:
    """The width, 1..slots, that gives `ready` segments the least mean completion time.

    `context` is their mean length in tokens: where attention is the cost, batching buys nothing. `known` is
    0 where nothing tells their sizes apart, 1 where all sizes are known.
    """

    most = max(1, min(slots, ready))

    def mean_completion(width: int) -> float:
        return (max(ready, width) + known * width) * speeds.decode_step(width, width * context) / width

    # For w <= n it is n b / w + `known` c w and a constant: b a base step, c what each segment adds.
    each = speeds.step_segment_s + context * speeds.step_token_s
    ideal = math.sqrt(ready * speeds.step_base_s / (known * each)) if each else math.inf
    lower = int(min(max(1.0, ideal), most))
    return min(lower, min(lower + 1, most), key=mean_completion)
