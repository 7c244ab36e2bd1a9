"""How many segments to run at once: as many as pays, not as many as fit.

Running w equal segments together ends all of them after w S / R(w), one after another on average after
(w + 1) / 2 S / R(1), with R the total decode speed. Width w is therefore worth R(w) (w + 1) / (2 w), and the
best width is where that is largest: 1 where batching buys nothing, all slots where decoding scales.
"""

from astraea_local.scheduler.predictor import Speeds


def best_width(speeds: Speeds, slots: int) -> int:
    """The number of segments, 1..slots, that gives the least mean completion time."""

    def value(width: int) -> float:
        rate = width / speeds.decode_step(width)
        return rate * (width + 1) / (2 * width)

    return max(range(1, slots + 1), key=value)
