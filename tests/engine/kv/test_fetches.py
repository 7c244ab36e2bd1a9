"""States on disk that somebody needs, and a RAM that is too small for them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.harness import Harness, MakeHarness, prompt

SMALL: dict[str, Any] = {
    "context__slots": 2,
    "context__size": 16384,
    "retention__ram_mib": 1,
    "retention__disk_mib": 64,
    "retention__min_tokens": 8,
    "retention__write_behind_s": 0.0,
}
LAYOUTS = ["per_slot", "unified"]


def _to_disk(h: Harness, job: str) -> None:
    """Parks the job's state, of which nothing stays in RAM."""
    residency = h.core.residency
    residency.park_now(job)
    residency.store.sink(job)
    part, length = residency.store.tree.end_of(job) or (None, 0)
    assert part is not None
    deadline = time.monotonic() + 20
    while residency.store.missing_bytes(part, length) < residency.store.bytes_of(part, length):
        h.core.idle()
        assert time.monotonic() < deadline, "it never left the RAM"


def _talk(h: Harness, job: str, seed: int, turns: int, length: int) -> list[int]:
    """A conversation that goes to disk after each turn, a part each; returns all of it."""
    said: list[int] = []
    for turn in range(turns):
        said += prompt(100 * seed + turn, length)
        said += h.ask(job, said).output
        _to_disk(h, job)
    return said


def _leave_slots(h: Harness) -> None:
    for sequence in h.core.table.idle():
        h.core.table.clear(sequence)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_larger_than_the_ram_comes_back_as_far_as_it_fits(
    harness: MakeHarness, layout: str, tmp_path: Path
) -> None:
    """Its parts would push each other out, for ever; and what does not fit is not lost for that."""
    h = harness(**SMALL, kv__layout=layout, retention__disk_path=str(tmp_path))
    said = _talk(h, "a", 1, 3, 1600)
    expected = harness(context__slots=2, context__size=16384).ask("x", [*said, 7]).output
    for _ in range(2):
        last = h.ask("other", [*said, 7])
        assert 3200 <= last.cached_tokens < 3300
        assert last.output == expected
        _leave_slots(h)
    store = h.core.residency.store
    assert (store.stats.failures, store.covered(np.array(said[:-1], dtype=np.int32))) == (0, len(said) - 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_that_do_not_fit_together_come_back_one_after_the_other(
    harness: MakeHarness, layout: str, tmp_path: Path
) -> None:
    h = harness(**SMALL, kv__layout=layout, retention__disk_path=str(tmp_path))
    talks = {job: _talk(h, job, seed, 2, 1400) for seed, job in enumerate(("a", "b", "c"))}
    segments = [h.submit(job, [*said, 7]) for job, said in talks.items()]
    h.run()
    for segment, said in zip(segments, talks.values(), strict=True):
        assert h.finished(segment).cached_tokens >= len(said) - 1
    assert h.core.residency.store.stats.failures == 0
    assert all(part.busy == 0 for part in h.core.residency.store.tree)
