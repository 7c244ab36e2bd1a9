"""What is still to come: output lengths, tool waits and further calls, learned from what was seen.

Every prediction is a distribution, from the general (all jobs) to the specific (the kind of job, the job
itself; the tool, its verb). The priors are published figures of coding agents: outputs of 80 tokens in the
median and 167 in the mean, tools that mostly return at once and sometimes take minutes.
"""

from typing import Protocol

from astraea_local.scheduler.distribution import Distribution, Empirical, lognormal
from astraea_local.scheduler.job import Job, Rest
from astraea_local.scheduler.survival import Survival

_OUTPUT_SHAPE = 167 / 80
_TOOL_S = lognormal(0.3, 4.0)
_MEAN_CALLS = 10.0
_GROWTH = lognormal(122.0, 247.0)
# The effort alone is best for the mean and worst for the tail; chosen in simulation (docs/scheduling.md).
_EAGER = 0.5


class Learned(Protocol):
    """A trained model, which learns its features as it goes.

    It predicts None where it has nothing better to say than the empirical distributions.
    """

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution | None: ...

    def wait(self, job: Job) -> Distribution | None: ...

    def segment_ended(self, job: Job, output_tokens: int) -> None: ...

    def wait_ended(self, job: Job, seconds: float) -> None: ...


class Predictor:
    """Learns from every segment, wait and job that ends."""

    def __init__(self, output_tokens: float = 80.0, learned: Learned | None = None) -> None:
        """`output_tokens` is the median output length assumed of jobs of which nothing is known."""
        self.learned = learned
        self.outputs = Empirical(lognormal(output_tokens, output_tokens * _OUTPUT_SHAPE))
        self.waits = Empirical(_TOOL_S)
        self.calls = Survival(_MEAN_CALLS)
        self.growth = Empirical(_GROWTH)

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution:
        """Output length of the job's next segment, tokens; `max_output` cuts it where it is used."""
        if self.learned is not None:
            found = self.learned.output(job, prompt_tokens, max_output)
            if found is not None:
                return found
        return self.outputs.predict((job.kind, _own(job)))

    def wait(self, job: Job) -> Distribution:
        """Seconds that the job's present tool wait lasts in all, as believed when it began."""
        if self.learned is not None and (found := self.learned.wait(job)) is not None:
            return found
        return self.waits.predict(tool_path(job))

    def rest(self, job: Job) -> Rest:
        """What comes after the segment that the job has now."""
        number = job.segments + 1
        expected, effort = self.calls.remaining(job.kind, number), self.calls.effort(job.kind, number)
        return Rest(
            _EAGER * effort + (1.0 - _EAGER) * expected,
            self.outputs.predict((job.kind,)).mean,
            self.growth.predict((job.kind,)).mean,
            self.waits.predict(tool_path(job)[:1]),
            expected,
        )

    def segment_ended(self, job: Job, output_tokens: int) -> None:
        """Learns an output length."""
        self.outputs.observe((job.kind, _own(job)), max(1, output_tokens))
        if self.learned is not None:
            self.learned.segment_ended(job, output_tokens)

    def wait_ended(self, job: Job, seconds: float, growth: int) -> None:
        """Learns a tool wait, and how much longer the context became by it."""
        if not job.presumed_over:
            self.calls.observe(job.kind, job.segments, ended=False)
        self.waits.observe(tool_path(job), seconds)
        if self.learned is not None:
            self.learned.wait_ended(job, seconds)
        self.growth.observe((job.kind,), max(1, growth))

    def job_ended(self, job: Job) -> None:
        """Learns how many segments a job had."""
        if job.segments:
            self.calls.observe(job.kind, job.segments, ended=True)


def tool_path(job: Job) -> tuple[str, ...]:
    """Names under which a wait is learned: kind of job, tool, tool and verb."""
    tool = job.tool.partition(":")[0]
    return (f"kind {job.kind}" if job.kind else "", tool, job.tool if job.tool != tool else "")


def _own(job: Job) -> str:
    return f"job {job.id}"
