"""Whatever is wrong with parked states, the disk or the clock: a counter, a line, and the right answer.

Faults that files can have on their own are in `tests/engine/test_residency.py`, those of the driver in
`tests/engine/test_nvml.py`, `kill -9` in `test_disk.py` and `tests/e2e/test_retention.py`.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from astraea_local.bench import random_model
from astraea_local.engine.binding import Model
from astraea_local.engine.kv.disk import DiskStore
from astraea_local.engine.kv.files import Bytes
from astraea_local.engine.kv.library import PartLibrary
from tests.engine.harness import Harness, MakeHarness, prompt
from tests.engine.kv.states import no_space_left, read_only

# Without flash attention a prompt that is computed in other chunks gives the same bits.
EXACT = {"context__slots": 1, "context__size": 512, "model__flash_attention": "off"}
TALK = prompt(1, 200)

MakeServer = Callable[..., Harness]


@pytest.fixture
def server(harness: MakeHarness, tmp_path: Path) -> MakeServer:
    """Cores that keep states in one folder and write them as soon as they are parked."""

    def make(**changes: object) -> Harness:
        disk = {"retention__disk_path": str(tmp_path / "kv"), "retention__write_behind_s": 0.0}
        return harness(**{**EXACT, **disk, **changes})

    return make


def _disk(h: Harness) -> DiskStore:
    tier = h.core.residency.store.disk
    assert tier is not None
    return tier._store


def _settle(h: Harness) -> None:
    """Copies what is idle, hands it to the disk, and waits for that."""
    for _ in range(2):
        while h.core.idle():
            pass


def _park(h: Harness) -> tuple[int, ...]:
    """The agent's first answer; its state is parked, and on disk if the disk takes it."""
    first = h.ask("agent", TALK)
    _settle(h)
    assert h.core.residency.park_now("agent") or h.core.profile.retention.ram_mib == 0
    return first.output


def _to_disk(h: Harness) -> Path:
    """Gives up the copy in RAM; the only file."""
    store = h.core.residency.store
    store.relieve_ram(1 << 30)
    assert store.tier_of("agent")[0] == "disk"
    (file,) = _disk(h).folder.glob("*.kv")
    return file


def _go_on(h: Harness, first: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The agent's second call: cached tokens, and the answer."""
    end = h.ask("agent", [*TALK, *first, 7, 8, 9])
    return end.cached_tokens, end.output


def _is_recomputed(h: Harness, first: tuple[int, ...], expected: Harness) -> None:
    cached, output = _go_on(h, first)
    assert cached == 0
    assert output == _go_on(expected, first)[1]
    assert h.core.residency.store.stats.failures == 1
    assert any("computed again" in event.text for event in h.core.log.lines)


def test_the_state_of_another_model_is_not_used(
    server: MakeServer, harness: MakeHarness, tmp_path: Path
) -> None:
    """Not even under the right name, in the right folder."""
    h = server()
    first = _park(h)
    file = _to_disk(h)
    path = random_model.write(tmp_path / "other.gguf", "tiny", seed=1)
    with Model(path) as model:
        other = Harness(model, h.core.profile)
        other.ask("agent", TALK)
        _settle(other)
        (foreign,) = _disk(other).folder.glob("*.kv")
        shutil.copy(foreign, file)
        _disk(other).close(timeout_s=30)
        other.close()
    _is_recomputed(h, first, harness(**EXACT))


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "cut off"])
def test_a_file_that_goes_away_while_it_is_restored(
    server: MakeServer, harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    """Somebody empties the cache after the restore was decided on."""
    h = server()
    first = _park(h)
    file = _to_disk(h)
    original = PartLibrary.read

    def read(self: PartLibrary, part_id: str, into: Bytes, cancelled: Callable[[], bool]) -> int:
        if deleted:
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2)
        return original(self, part_id, into, cancelled)

    monkeypatch.setattr(PartLibrary, "read", read)
    _is_recomputed(h, first, harness(**EXACT))


def test_a_full_disk(server: MakeServer, harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state lasts as long as RAM does; without either it is computed again."""
    no_space_left(monkeypatch)
    h, expected = server(), harness(**EXACT)
    first = _park(h)
    store = h.core.residency.store
    assert store.disk is not None
    assert store.disk.stats.failures == 1
    assert store.disk_bytes == 0
    cached, output = _go_on(h, first)
    assert cached >= len(TALK)
    assert output == _go_on(expected, first)[1]
    h.core.residency.park_now("agent")
    store.relieve_ram(1 << 30)
    assert store.stats.evictions >= 1
    assert _go_on(h, first) == (0, output)


def test_a_folder_that_became_read_only(
    server: MakeServer, harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is used, what is new stays in RAM."""
    before = server()
    first = _park(before)
    _to_disk(before)
    read_only(monkeypatch)
    h = server()
    cached, output = _go_on(h, first)
    assert cached >= len(TALK)
    assert output == _go_on(harness(**EXACT), first)[1]
    _settle(h)
    store = h.core.residency.store
    assert store.disk is not None
    assert store.disk.stats.failures == 1
    assert store.ram_bytes > 0


def test_no_budget_for_ram(server: MakeServer, harness: MakeHarness) -> None:
    """Nothing is parked, not on disk either: its files go through RAM."""
    h = server(retention__ram_mib=0)
    first = _park(h)
    h.ask("other", prompt(2, 200))
    cached, output = _go_on(h, first)
    assert cached == 0
    assert output == _go_on(harness(**EXACT), first)[1]
    assert h.core.residency.store.stats.parks == 0
    assert h.core.residency.store.disk is None


@pytest.mark.parametrize("on_disk", [False, True], ids=["ram", "disk"])
def test_the_clock_jumps_while_a_job_waits(server: MakeServer, harness: MakeHarness, on_disk: bool) -> None:
    """As after a night in which the machine slept."""
    h = server()
    first = _park(h)
    if on_disk:
        _to_disk(h)
    h.ahead_s = 1e6
    _settle(h)
    cached, output = _go_on(h, first)
    assert cached >= len(TALK)
    assert output == _go_on(harness(**EXACT), first)[1]
    assert h.core.residency.store.stats.failures == 0


@pytest.mark.parametrize("used_at", [0.0, 1e10], ids=["the past", "the future"])
def test_the_date_was_wrong_when_a_state_was_written(
    server: MakeServer, harness: MakeHarness, used_at: float
) -> None:
    before = server()
    first = _park(before)
    os.utime(_to_disk(before), (used_at, used_at))
    h = server()
    cached, output = _go_on(h, first)
    assert cached >= len(TALK)
    assert output == _go_on(harness(**EXACT), first)[1]
