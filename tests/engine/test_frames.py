"""What a frame says about jobs, taken from a real core."""

from pathlib import Path

import pytest

from astraea_local.engine.frames import FrameBuilder
from astraea_local.engine.memory import MemoryProbe
from astraea_local.engine.memory_watch import MemoryWatch
from tests.engine.harness import Harness, MakeHarness, prompt


def _shared(h: Harness, folder: Path) -> dict[str, tuple[str, int]]:
    watch = MemoryWatch(MemoryProbe((), folder, 1.0), h.core.profile.memory, 0)
    return {row.job: (row.kv, row.kv_shared) for row in FrameBuilder(h.core, watch).build().jobs}


@pytest.mark.parametrize("layout", ["per_slot", "unified"])
def test_jobs_that_begin_alike_say_what_they_share(harness: MakeHarness, tmp_path: Path, layout: str) -> None:
    h = harness(context__slots=3, context__size=1024, kv__layout=layout)
    for job in ("a", "b"):
        h.ask(job, [*prompt(0, 100), *prompt(ord(job), 30)])
    # By reference in a pool; a sequence of the other layout has cells of its own.
    resident = 100 if layout == "unified" else 0
    assert _shared(h, tmp_path) == {"a": ("slot", resident), "b": ("slot", resident)}
    for job in ("a", "b"):
        h.core.residency.park_now(job)
    assert _shared(h, tmp_path) == {"a": ("ram", 100), "b": ("ram", 100)}
