"""What earlier jobs taught: read at start, added to by every segment, kept on disk.

The scheduler's predictor is warmed up from the history; ended segments go back to it through a writer
thread; a learned model is trained from it while the server is idle, and used where it predicts better.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from astraea_local import history
from astraea_local.history import History, HistoryError, HistoryWriter, SegmentRecord
from astraea_local.learning import store
from astraea_local.learning.background import Trainer
from astraea_local.learning.dataset import job_key
from astraea_local.profile import PredictionSettings
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Job
from astraea_local.scheduler.learned import LearnedPair, Statistics
from astraea_local.scheduler.predictor import Predictor

_logger = logging.getLogger(__name__)

# Enough for every distribution to be at its memory's end; reading takes less than a tenth of a second.
_WARM_UP = 20_000


class LiveLearned:
    """Feeds a trained model with what happens, and asks it."""

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.pair: LearnedPair | None = None

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution | None:
        """The model's prediction of an output length, None without a model that is good at it."""
        if self.pair is None or self.pair.output is None:
            return None
        features = self.statistics.output_features(
            job.kind,
            job.id,
            prompt_tokens=prompt_tokens,
            new_tokens=max(0, prompt_tokens - job.context),
            max_output=max_output,
        )
        return self.pair.output.predict(features)

    def wait(self, job: Job) -> Distribution | None:
        """The model's prediction of a tool wait."""
        if self.pair is None or self.pair.wait is None:
            return None
        return self.pair.wait.predict(self.statistics.wait_features(job.kind, job.id, job.tool))

    def segment_ended(self, job: Job, output_tokens: int) -> None:
        """Takes in an output length."""
        self.statistics.observe_segment(job.kind, job.id, output_tokens)

    def wait_ended(self, job: Job, seconds: float) -> None:
        """Takes in a tool wait."""
        self.statistics.observe_wait(job.kind, job.id, job.tool, seconds)


class Experience:
    """History, predictor and learned model of one engine life."""

    def __init__(
        self, model: str, settings: PredictionSettings, output_tokens: float, path: Path | None = None
    ) -> None:
        """Reads the history of `model` at `path` (the user's when None); a broken one is only logged."""
        self._live = LiveLearned()
        self.predictor = Predictor(output_tokens, self._live)
        self._writer: HistoryWriter | None = None
        self._trainer: Trainer | None = None
        self._records = 0
        self._busy_at = 0.0
        if not settings.history:
            return
        path = path or history.default_path()
        try:
            with History(path) as opened:
                records = opened.segments(model, _WARM_UP)
        except HistoryError as error:
            _logger.warning("%s; nothing is learned from earlier jobs", error)
            return
        warm_up(self.predictor, records)
        self._records = len(records)
        self._writer = HistoryWriter(path)
        if settings.learned:
            self._trainer = Trainer(path, path.parent, model)
            self._live.pair = store.load(self._trainer.path)

    @property
    def records(self) -> int:
        """Segments learned from."""
        return self._records

    def record(self, segment: SegmentRecord) -> None:
        """Writes an ended segment down. Never blocks."""
        self._records += 1
        if self._writer is not None:
            self._writer.put(segment)

    def tick(self, now: float, *, busy: bool) -> str | None:
        """Starts a training when it is due, and takes a new model in; returns a line for the event log."""
        if busy:
            self._busy_at = now
        if self._trainer is None:
            return None
        try:
            ended = self._trainer.tick(now, self._records, now - self._busy_at)
        except OSError as error:
            return f"the learned predictor cannot be trained: {error}"
        if ended is None:
            return None
        if ended.code == 0:
            self._live.pair = store.load(ended.path)
        return f"learned predictor: {ended.message}"

    def close(self) -> None:
        """Writes what is queued and ends a training."""
        if self._trainer is not None:
            self._trainer.close()
        if self._writer is not None:
            self._writer.close()


def warm_up(predictor: Predictor, records: Sequence[SegmentRecord]) -> None:
    """Teaches the predictor what recorded segments show, as if it had been there."""
    jobs: dict[str, Job] = {}
    for record in records:
        key = job_key(record)
        job = jobs.setdefault(key, Job(key, record.arrived, kind=record.kind))
        if record.wait_s is not None:
            job.tool = record.tool
            predictor.wait_ended(job, record.wait_s, record.new_tokens)
        predictor.segment_ended(job, record.output_tokens)
        job.segments += 1
    for job in jobs.values():
        predictor.job_ended(job)
