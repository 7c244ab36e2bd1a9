"""What a segment and a job will cost, in seconds: predictions put into measured speeds."""

from dataclasses import dataclass

from astraea_local.scheduler.job import Rest, Segment
from astraea_local.scheduler.speeds import Speeds

# The queue is expected to last this many times the work that waits now: others keep coming.
_HORIZON = 5.0
_LEAST_BACKLOG_S = 1.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the costs depend on besides the segment."""

    speeds: Speeds
    width: int = 1
    """Segments that decode together."""
    backlog_s: float = 0.0
    """Machine time of all segments that wait."""


def prefill_s(segment: Segment, speeds: Speeds) -> float:
    """Restoring what is parked and computing what is not cached."""
    new = segment.uncached
    restore = 0.0 if segment.computed else segment.restore_s
    return restore + speeds.prefill(new, segment.context - new)


def service_s(segment: Segment, at: Conditions) -> float:
    """T_proc of Astraea section 4.2: time in a slot until its end, `width` segments decoding together.

    Counts uncached tokens only, and the restore of parked KV.
    """
    step = at.speeds.decode_step(at.width, at.width * segment.context)
    return prefill_s(segment, at.speeds) + segment.remaining_output * step


def work_s(segment: Segment, at: Conditions) -> float:
    """Machine time until its end: a decode step counts by the segment's share of it."""
    step = at.speeds.decode_step(at.width, at.width * segment.context) / at.width
    return prefill_s(segment, at.speeds) + segment.remaining_output * step


def rest_s(rest: Rest, context: int, at: Conditions) -> float:
    """Machine time of a job's later segments, whose context starts with `context` tokens."""
    longer = round(context + 0.5 * rest.segments * (rest.output + rest.growth))
    step = at.speeds.decode_step(at.width, at.width * longer) / at.width
    return rest.segments * (at.speeds.prefill(round(rest.growth), longer) + rest.output * step)


def price_s(segment: Segment, at: Conditions) -> float:
    """Machine seconds that it takes to have one job less in the queue for as long as the queue will last.

    A job that ends is gone for good; one that goes to its tool is gone for the wait, which counts in full
    when it outlasts the queue and hardly at all when the tool is quick. Two ways are open, and the cheaper
    one is the price: running this segment only, or the job to its end. With long waits this is shortest
    segment first, with quick tools shortest remaining job first.
    """
    rest = segment.rest
    work = work_s(segment, at)
    horizon = _HORIZON * max(_LEAST_BACKLOG_S, at.backlog_s)
    away = rest.wait.capped(horizon) / horizon
    last = 1.0 / (1.0 + rest.segments)
    one = work / (last + (1.0 - last) * away)
    return min(one, (work + rest_s(rest, segment.context, at)) / (1.0 + rest.segments * away))
