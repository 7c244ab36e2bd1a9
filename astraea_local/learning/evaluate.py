"""Which predicts better, the empirical distributions or a trained model, on rows that neither has seen.

Both are judged by their quantile (pinball) loss on logarithms, averaged over `LEVELS`: being wrong by a
factor costs the same for a second as for an hour, while in seconds a few long waits would decide alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astraea_local.history import SegmentRecord
from astraea_local.learning.dataset import Dataset, Rows, Step, job_key, output, replay, wait_s
from astraea_local.scheduler.distribution import Distribution, lognormal
from astraea_local.scheduler.job import Job
from astraea_local.scheduler.learned import LEAST_WAIT_S, Array, LearnedModel, LearnedPair
from astraea_local.scheduler.predictor import Predictor

LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.98, 0.995)
"""Shares of the quantiles that are learned and compared. Few waits are long, but they hold most of the time:
hence the last two."""
MIN_ROWS = 200
"""With fewer rows of a target nothing is learned or compared."""
MARGIN = 0.01
"""A model has to be better by this share: less is not worth the change, and the held-out rows are few."""
CALIBRATED = (0.1, 0.5, 0.9)
"""Levels at which it is counted how many values lie below."""
# Logarithms of what the targets are never below.
_LEAST_OUTPUT = 0.0
_LEAST_WAIT = math.log(LEAST_WAIT_S)
# How many standard errors the difference has to be away from none: about 1 of 40 useless models passes that.
_SURE = 2.0


@dataclass(frozen=True, slots=True)
class Score:
    """How well something predicted the held-out rows."""

    loss: float
    """Mean pinball loss."""
    below: tuple[float, ...]
    """Shares of the values at or below the predicted quantiles of the levels `CALIBRATED`."""


@dataclass(frozen=True, slots=True)
class TargetReport:
    """Both sides for one target."""

    target: str
    """`output` (tokens) or `wait` (seconds)."""
    rows: int
    """All rows; the last fifth is held out."""
    empirical: Score | None = None
    """None when there are fewer than `MIN_ROWS` rows."""
    learned: Score | None = None
    """None when nothing was trained."""
    wins: bool = False
    """Whether the learned model is good enough to be used."""


@dataclass(frozen=True, slots=True)
class Report:
    """Both targets of one model, or of all when `model` is None."""

    model: str | None
    output: TargetReport
    wait: TargetReport

    @property
    def targets(self) -> tuple[TargetReport, TargetReport]:
        return self.output, self.wait


def pinball(targets: Array, quantiles: Array) -> Array:
    """Loss of each row (N,), averaged over `LEVELS`, of predicted quantiles (N, Q)."""
    miss = targets[:, None] - quantiles
    levels = np.array(LEVELS)
    loss: Array = np.maximum(levels * miss, (levels - 1.0) * miss).mean(axis=1)
    return loss


def evaluate(
    records: Sequence[SegmentRecord], dataset: Dataset, model: str | None, learned: LearnedPair | None
) -> Report:
    """Compares on the held-out rows of `dataset`, which was built from the same records."""
    parts = _empirical(records, dataset)
    pair = learned or LearnedPair()
    return Report(
        model,
        _compare("output", dataset.outputs, parts[0], pair.output, _LEAST_OUTPUT),
        _compare("wait", dataset.waits, parts[1], pair.wait, _LEAST_WAIT),
    )


def _compare(
    target: str, rows: Rows, empirical: Array, model: LearnedModel | None, least: float
) -> TargetReport:
    if len(rows) < MIN_ROWS:
        return TargetReport(target, len(rows))
    held_out = rows.split()[2]
    theirs = _score(held_out.targets, empirical)
    if model is None:
        return TargetReport(target, len(rows), theirs)
    quantiles = np.array([_logs(model.predict(row), least) for row in held_out.features.tolist()])
    mine = _score(held_out.targets, quantiles)
    gain = pinball(held_out.targets, empirical) - pinball(held_out.targets, quantiles)
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
    wins = mine.loss <= (1.0 - MARGIN) * theirs.loss and float(gain.mean()) > _SURE * error
    return TargetReport(target, len(rows), theirs, mine, wins)


def _score(targets: Array, quantiles: Array) -> Score:
    columns = [LEVELS.index(level) for level in CALIBRATED]
    below = tuple(float(np.mean(targets <= quantiles[:, column])) for column in columns)
    return Score(float(pinball(targets, quantiles).mean()), below)


def _empirical(records: Sequence[SegmentRecord], dataset: Dataset) -> tuple[Array, Array]:
    """What the server's own predictor would have said of the held-out rows: quantiles (N, Q) of both."""
    predictor = Predictor()
    outputs: list[list[float]] = []
    waits: list[list[float]] = []
    skipped = {Step.ARRIVES: dataset.outputs.held_out_from, Step.WAIT_BEGINS: dataset.waits.held_out_from}
    for step, record in replay(records):
        job = Job(job_key(record), record.arrived, kind=record.kind, tool=record.tool)
        if step is Step.ENDS:
            predictor.segment_ended(job, output(record))
        elif step is Step.WAIT_ENDS:
            predictor.wait_ended(job, wait_s(record), record.new_tokens)
        elif skipped[step] > 0:
            skipped[step] -= 1
        elif step is Step.ARRIVES:
            outputs.append(
                _logs(predictor.output(job, record.prompt_tokens, record.max_output), _LEAST_OUTPUT)
            )
        else:
            waits.append(_logs(predictor.wait(job), _LEAST_WAIT))
    return _matrix(outputs), _matrix(waits)


def _logs(predicted: Distribution, least: float) -> list[float]:
    return [max(least, math.log(predicted.quantile(level))) for level in LEVELS]


def _matrix(rows: Sequence[Sequence[float]]) -> Array:
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(LEVELS))


_NOTHING = lognormal(1.0, 2.0)
