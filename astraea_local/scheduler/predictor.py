"""What a segment will cost: from measured speeds and, for its length, from the job's own past."""

from dataclasses import dataclass

from astraea_local.scheduler.job import Job, Segment

# A job's own mean counts as much as the prior after this many segments.
_PRIOR_WEIGHT = 2.0
# A segment that outlives its prediction is expected to go on for this share of what it has produced.
_OVERRUN = 0.25


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measured on the running model; see `engine.speed`. Times are seconds."""

    prefill_tokens_s: float = 200.0
    step_base_s: float = 0.004
    """What a decode step costs whatever is in it: reading the weights."""
    step_segment_s: float = 0.005
    """What each segment adds to it."""
    step_token_s: float = 3e-6
    """What each token of their contexts adds: attention."""
    restore_bytes_s: float = 4e9

    def decode_step(self, segments: int, tokens: int) -> float:
        """A step in which `segments` with `tokens` of context together yield one token each."""
        return self.step_base_s + segments * self.step_segment_s + tokens * self.step_token_s


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
    return restore + prefill + remaining_output(segment) * speeds.decode_step(1, segment.context)
