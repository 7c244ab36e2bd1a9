"""The history's record of each ended segment, from which later starts predict."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from astraea_local.engine.messages import Finished
from astraea_local.engine.run import Back, Run
from astraea_local.history import SegmentRecord
from astraea_local.scheduler.job import Job


@dataclass(frozen=True, slots=True)
class Recorder:
    """Makes the records of one engine life and hands them to `keep`."""

    model: str
    keep: Callable[[SegmentRecord], None]
    life: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Id of this engine life, never used before."""

    def ended(self, run: Run, finished: Finished, preemptions: int, now: float) -> None:
        """Keeps the record of a run that has just ended; `now` is on the clock of `run.submitted_at`."""
        request, back = run.request, run.back
        self.keep(
            SegmentRecord(
                run=self.life,
                model=self.model,
                job=request.job,
                kind=request.kind,
                parent=request.parent,
                number=back.number,
                arrived=time.time() - (now - run.submitted_at),
                queued_s=finished.queued_s,
                prefill_s=finished.prefill_s,
                decode_s=finished.decode_s,
                prompt_tokens=finished.prompt_tokens,
                cached_tokens=finished.cached_tokens,
                output_tokens=finished.output_tokens,
                max_output=request.max_output,
                new_tokens=back.new_tokens,
                preemptions=preemptions,
                tool=request.tool,
                wait_s=back.wait_s,
                outcome=finished.reason,
            )
        )


def follows(job: Job, prompt_tokens: int, now: float) -> Back:
    """How a segment of that many prompt tokens, submitted `now`, follows those its job had before."""
    if job.active or not job.segments:
        return Back(job.segments + len(job.active), None, prompt_tokens)
    return Back(job.segments, now - job.since, max(0, prompt_tokens - job.context))
