"""How many segments to run at once: as many as pays, not as many as fit.

Of n segments of equal, known size S, run w at a time with total decode speed R(w), the k-th group ends after
k w S / R(w), so that on average a segment ends after (n + w) / 2 x S / R(w): running few at a time brings the
first ones home early. Of segments whose sizes cannot be told apart, any that runs is as likely to be short
as those that wait, nothing is gained by running few, and the mean is n / R(w). Real predictions lie
between, nearer to the second.
"""

from astraea_local.scheduler.speeds import Speeds

# How much of the gain of known sizes predictions keep; chosen in simulation (docs/scheduling.md).
_KNOWN = 0.3


def best_width(speeds: Speeds, slots: int, ready: int, context: float) -> int:
    """The width, 1..slots, that gives `ready` segments the least mean completion time.

    `context` is their mean length in tokens: where attention is the cost, batching buys nothing.
    """

    def mean_completion(width: int) -> float:
        rate = width / speeds.decode_step(width, int(width * context))
        return (max(ready, width) + _KNOWN * width) / rate

    return min(range(1, slots + 1), key=mean_completion)
