"""What could be known when: recorded segments as features and targets, without a look ahead.

Records are replayed as events in the order of time. An output is predicted when its segment arrives, a wait
when the segment before it has ended, each from what had ended by then, in whatever job.

Censoring is ignored: an output that `max_output` or a cancellation cut off counts with the length it had, as
it does for the empirical distributions.
"""

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from astraea_local.history import History, SegmentRecord
from astraea_local.scheduler.learned import (
    LEAST_WAIT_S,
    OUTPUT_FEATURES,
    WAIT_FEATURES,
    Array,
    Statistics,
)

HELD_OUT = 0.2
"""Share of the rows, the last ones, that training never sees."""
_VALIDATION = 0.2


class Step(enum.IntEnum):
    """What happens to a segment, in this order."""

    WAIT_BEGINS = 0
    """The segment before has ended; the tool is known."""
    WAIT_ENDS = 1
    ARRIVES = 2
    ENDS = 3


@dataclass(frozen=True)
class Rows:
    """Features (N, F) and logarithms of the targets (N,), in the order of the predictions."""

    features: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def held_out_from(self) -> int:
        """Index of the first held-out row."""
        return len(self) - int(len(self) * HELD_OUT)

    def split(self) -> tuple[Self, Self, Self]:
        """Training, validation and held-out rows; none is later than one of the next part."""
        last = self.held_out_from
        first = last - int(len(self) * _VALIDATION)
        return self._part(0, first), self._part(first, last), self._part(last, len(self))

    def _part(self, begin: int, end: int) -> Self:
        return replace(self, features=self.features[begin:end], targets=self.targets[begin:end])


@dataclass(frozen=True)
class Dataset:
    """Rows of both targets: tokens of an output, seconds of a tool wait."""

    outputs: Rows
    waits: Rows


def read(path: Path, model: str | None) -> list[SegmentRecord]:
    """Recorded segments of a model, or of all, oldest first; none when there is no file.

    Raises `HistoryError` for a file that cannot be used.
    """
    if not path.exists():
        return []
    with History(path) as history:
        return history.segments(model)


def job_key(record: SegmentRecord) -> str:
    """Names the job among those of all engine lives."""
    return f"{record.run}/{record.job}"


def replay(records: Iterable[SegmentRecord]) -> Iterator[tuple[Step, SegmentRecord]]:
    """Everything that happened, in the order of time. `records` are in the order in which they ended."""
    events: list[tuple[float, int, Step]] = []
    kept = [record for record in records if math.isfinite(record.arrived) and math.isfinite(record.ended)]
    ends: dict[str, float] = {}
    for index, record in enumerate(kept):
        job = job_key(record)
        arrived = record.arrived
        if record.wait_s is not None and math.isfinite(record.wait_s):
            # The clock of the wait is not that of the times: a step of the latter must not swap events.
            began = max(arrived - max(0.0, record.wait_s), ends.get(job, -math.inf))
            arrived = max(arrived, began)
            events += [(began, index, Step.WAIT_BEGINS), (arrived, index, Step.WAIT_ENDS)]
        ended = max(arrived, record.ended)
        events += [(arrived, index, Step.ARRIVES), (ended, index, Step.ENDS)]
        ends[job] = max(ended, ends.get(job, ended))
    events.sort()
    for _, index, step in events:
        yield step, kept[index]


def feed(statistics: Statistics, step: Step, record: SegmentRecord) -> None:
    """Lets the statistics see what an event made known; beginnings make nothing known."""
    if step is Step.ENDS:
        statistics.observe_segment(record.kind, job_key(record), record.output_tokens)
    elif step is Step.WAIT_ENDS:
        statistics.observe_wait(record.kind, job_key(record), record.tool, wait_s(record))


def build(records: Iterable[SegmentRecord]) -> Dataset:
    """Rows of all segments, and of all known waits."""
    statistics = Statistics()
    outputs: list[tuple[tuple[float, ...], float]] = []
    waits: list[tuple[tuple[float, ...], float]] = []
    for step, record in replay(records):
        job = job_key(record)
        if step is Step.ARRIVES:
            features = statistics.output_features(
                record.kind,
                job,
                prompt_tokens=record.prompt_tokens,
                new_tokens=record.new_tokens,
                max_output=record.max_output,
            )
            outputs.append((features, math.log(output(record))))
        elif step is Step.WAIT_BEGINS:
            features = statistics.wait_features(record.kind, job, record.tool)
            waits.append((features, math.log(wait_s(record))))
        else:
            feed(statistics, step, record)
    return Dataset(_rows(outputs, len(OUTPUT_FEATURES)), _rows(waits, len(WAIT_FEATURES)))


def output(record: SegmentRecord) -> int:
    """The length that is to be predicted, tokens; at least one."""
    return max(1, record.output_tokens)


def wait_s(record: SegmentRecord) -> float:
    """The wait that is to be predicted, seconds; raises `ValueError` when it is unknown."""
    if record.wait_s is None:
        raise ValueError("the wait is unknown")
    return max(LEAST_WAIT_S, record.wait_s)


def _rows(made: Sequence[tuple[tuple[float, ...], float]], width: int) -> Rows:
    features = np.array([features for features, _ in made], dtype=np.float64).reshape(len(made), width)
    return Rows(features, np.array([target for _, target in made], dtype=np.float64))
