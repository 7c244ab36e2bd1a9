"""Recorded histories with a known law."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from astraea_local.history import History, SegmentRecord

Law = Callable[[random.Random, SegmentRecord], float]


SEGMENT = SegmentRecord(
    run="run",
    model="model",
    job="job",
    kind="a",
    parent=None,
    number=0,
    arrived=0.0,
    queued_s=0.25,
    prefill_s=0.25,
    decode_s=0.5,
    prompt_tokens=1000,
    cached_tokens=0,
    output_tokens=50,
    max_output=4096,
    new_tokens=100,
    preemptions=0,
    tool="",
    wait_s=None,
    outcome="stop",
)
"""A segment of one second."""


def noise(rng: random.Random, _: SegmentRecord) -> float:
    """A median of 80 whatever came before."""
    return rng.lognormvariate(math.log(80), 1.0)


def alternating(rng: random.Random, at: SegmentRecord) -> float:
    """Long and short in turn: jobs of kind "a" begin with a long one, the others with a short one."""
    is_long = (at.number % 2 == 0) == (at.kind == "a")
    return rng.lognormvariate(math.log(1000 if is_long else 20), 0.3)


def tool_noise(rng: random.Random, at: SegmentRecord) -> float:
    """A median of each tool's own, a second or a tenth of it."""
    return rng.lognormvariate(0.0 if at.tool == "bash:pytest" else math.log(0.1), 0.5)


def after_output(rng: random.Random, at: SegmentRecord) -> float:
    """The longer the output that called the tool, the longer the wait: `at` has the call's output."""
    return at.output_tokens * rng.lognormvariate(math.log(0.01), 0.3)


def history(
    jobs: int, segments: int, *, output: Law = noise, wait: Law = tool_noise, seed: int = 0
) -> list[SegmentRecord]:
    """Jobs of two kinds, a new one every ten seconds, each with so many segments and two tools in turn.

    `output` gets the segment that is to be long, `wait` the one before the tool, with the tool's name.
    """
    rng = random.Random(seed)
    made = []
    for index in range(jobs):
        at = replace(SEGMENT, job=f"job {index}", kind="ab"[index % 2], arrived=10.0 * index)
        for number in range(segments):
            at = replace(at, number=number, prompt_tokens=1000 + 100 * number)
            at = replace(at, output_tokens=max(1, round(output(rng, at))))
            made.append(at)
            ended = at.ended
            at = replace(at, tool=rng.choice(["bash:pytest", "bash:ls"]))
            seconds = wait(rng, at)
            at = replace(at, arrived=ended + seconds, wait_s=seconds)
    return sorted(made, key=lambda segment: segment.ended)


def write(path: Path, records: list[SegmentRecord]) -> Path:
    """The history as a file."""
    with History(path) as file:
        file.add(records)
    return path
