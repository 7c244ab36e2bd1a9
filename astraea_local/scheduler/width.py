"""How many segments to run at once: as many as pays, not as many as fit.

Of n equal segments of size S, run w at a time with total decode speed R(w), the k-th group ends after
k w S / R(w), so that on average a segment ends after (n + w) / 2 x S / R(w). The best width makes
(n + w) / R(w) least: narrow when few are there and batching buys little, all slots when many wait or
decoding scales.
"""

from astraea_local.scheduler.predictor import Speeds


def best_width(speeds: Speeds, slots: int, ready: int, context: float) -> int:
    """The width, 1..slots, that gives `ready` segments the least mean completion time.

    `context` is their mean length in tokens: where attention is the cost, batching buys nothing.
    """

    def mean_completion(width: int) -> float:
        rate = width / speeds.decode_step(width, int(width * context))
        return (max(ready, width) + width) / rate

    return min(range(1, slots + 1), key=mean_completion)
