"""What a segment will cost: from measured speeds and, for its length, from the job's own past."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from astraea_local.scheduler.job import Job, Segment

# A job's own mean counts as much as the prior after this many segments.
_PRIOR_WEIGHT = 2.0
# A segment that outlives its prediction is expected to go on for this share of what it has produced.
_OVERRUN = 0.25


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measured on the running model; see `engine.speed`."""

    prefill_tokens_s: float = 200.0
    step_s: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({1: 0.02}))
    """Seconds of one decode step by number of decoding segments."""
    restore_bytes_s: float = 4e9

    def decode_step(self, batch: int) -> float:
        """Seconds of a step in which `batch` segments decode; linear between the measured widths."""
        known = sorted(self.step_s)
        if batch in self.step_s:
            return self.step_s[batch]
        below = [b for b in known if b < batch]
        above = [b for b in known if b > batch]
        if below and above:
            low, high = below[-1], above[0]
            share = (batch - low) / (high - low)
            return self.step_s[low] + share * (self.step_s[high] - self.step_s[low])
        nearest = below[-1] if below else above[0]
        return self.step_s[nearest] * (max(1.0, batch / nearest) if below else 1.0)


def predict_output(job: Job, max_output: int, prior: float) -> float:
    """Expected output tokens of the job's next segment: its own mean, shrunk towards `prior`."""
    mean = (prior * _PRIOR_WEIGHT + job.output_tokens) / (_PRIOR_WEIGHT + job.segments)
    return max(1.0, min(float(max_output), mean))


def remaining_output(segment: Segment) -> float:
    """Expected tokens still to come, given those that came."""
    rest = max(segment.predicted_output - segment.output, _OVERRUN * segment.output, 1.0)
    return min(rest, float(max(1, segment.max_output - segment.output)))


def service_s(segment: Segment, speeds: Speeds) -> float:
    """T_proc of Astraea section 4.2, counting uncached tokens only, plus the restore of parked KV."""
    restore = 0.0 if segment.computed else segment.restore_s
    prefill = segment.uncached / speeds.prefill_tokens_s
    return restore + prefill + remaining_output(segment) * speeds.decode_step(1)
