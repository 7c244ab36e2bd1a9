"""The memory probe: the host is real, GPUs are not; and what a simulation makes of a reading."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.engine import memory
from astraea_local.engine.binding import Device
from astraea_local.engine.memory import MemoryProbe, Reading, overlay
from astraea_local.engine.nvml import Nvml
from tests.engine.test_nvml import MIB, PCI, FakeNvml

CUDA = Device("CUDA0", "NVIDIA Card", is_gpu=True, free=0, total=0, pci=PCI)
OTHER = Device("Vulkan0", "Radeon", is_gpu=True, free=0, total=0, pci="0000:0a:00.0")


def unknown(name: str) -> tuple[int, int]:
    return 0, 0


def probe(*gpus: Device, folder: Path = Path("/"), poll_s: float = 60.0, **options: Any) -> MemoryProbe:
    options.setdefault("ask", unknown)
    return MemoryProbe(gpus, folder, poll_s, **options)


@contextmanager
def started(made: MemoryProbe) -> Iterator[MemoryProbe]:
    made.start()
    try:
        yield made
    finally:
        made.close()


def test_the_host_is_read_at_once(tmp_path: Path) -> None:
    with started(probe(folder=tmp_path / "not" / "yet")) as made:
        reading = made.reading
    assert reading.ram_total == psutil.virtual_memory().total
    assert reading.ram_available is not None
    assert 0 < reading.ram_available < reading.ram_total
    assert reading.ram_ours is not None
    assert reading.ram_ours > 10 * MIB
    assert reading.disk_total is not None
    assert reading.disk_free is not None
    assert 0 < reading.disk_free <= reading.disk_total
    assert (reading.gpu, reading.vram_total, reading.gpu_load, reading.simulated) == ("", None, None, False)


def test_readings_go_on_and_the_thread_ends() -> None:
    class Disk:
        seen = 0
        again = threading.Event()

        def __call__(self, place: Path) -> Any:
            self.seen += 1
            if self.seen == 3:
                self.again.set()
            raise OSError("unplugged")

    disk = Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", disk)
        with started(probe(poll_s=0.001)) as made:
            assert disk.again.wait(30)
            assert made.reading.disk_total is None
    assert "memory-probe" not in {thread.name for thread in threading.enumerate()}


def test_nvml_splits_the_vram(tmp_path: Path) -> None:
    library = FakeNvml()
    with started(probe(CUDA, nvml=Nvml(library))) as made:
        reading = made.reading
    assert (reading.gpu, reading.vram_total) == ("NVIDIA Card", 8192 * MIB)
    assert (reading.vram_ours, reading.vram_others) == (2000 * MIB, 500 * MIB)
    assert (reading.gpu_load, reading.gpu_temperature) == (0.37, 61.0)
    assert library.sessions == 0


def test_our_own_count_stands_in_where_nvml_lists_no_process() -> None:
    library = FakeNvml()
    library.compute = []
    made = probe(CUDA, nvml=Nvml(library))
    for own, ours, others in ((1800 * MIB, 1800, 700), (9000 * MIB, 2500, 0)):
        made.own_bytes = own
        with started(made):
            assert (made.reading.vram_ours, made.reading.vram_others) == (ours * MIB, others * MIB)


def test_without_nvml_llama_cpp_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    library = FakeNvml()
    library.broken["nvmlInit"] = FakeNvml.NVMLError("NVML Shared Library Not Found")
    made = probe(CUDA, nvml=Nvml(library), ask=lambda name: (3000 * MIB, 8000 * MIB))
    made.own_bytes = 4000 * MIB
    with started(made):
        reading = made.reading
    assert (reading.vram_total, reading.vram_free) == (8000 * MIB, 3000 * MIB)
    assert (reading.vram_ours, reading.vram_others) == (4000 * MIB, 1000 * MIB)
    assert len(caplog.records) == 1


def test_nvml_is_not_asked_about_other_makes() -> None:
    library = FakeNvml()
    with started(probe(OTHER, nvml=Nvml(library), ask=lambda name: (1, 2))) as made:
        assert (made.reading.gpu, made.reading.vram_total) == ("Radeon", 2)
    assert library.calls == []


def test_a_backend_that_does_not_know_is_rarely_asked() -> None:
    asked: list[str] = []
    now = 0.0

    def ask(name: str) -> tuple[int, int]:
        asked.append(name)
        return 0, 0

    made = probe(OTHER, ask=ask, clock=lambda: now)
    for now in range(100):  # noqa: B007
        with started(made):
            assert (made.reading.gpu, made.reading.vram_total) == ("Radeon", None)
    assert len(asked) == 2


def test_of_several_gpus_the_fullest_counts() -> None:
    free = {"Vulkan0": 5, "Vulkan1": 1}
    second = Device("Vulkan1", "Arc", is_gpu=True, free=0, total=0)
    with started(probe(OTHER, second, ask=lambda name: (free[name], 10))) as made:
        assert (made.reading.gpu, made.reading.vram_free) == ("Arc", 1)


def test_nonsense_from_the_system_is_logged_once_and_survived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("/proc/meminfo is empty")

    made = probe()
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr("psutil.virtual_memory", fail)
        for _ in range(3):
            with started(made):
                assert made.reading == Reading()
    assert len(caplog.records) == 1
    with started(made):
        assert made.reading.ram_total


def test_a_simulation_applies_at_once_and_ends() -> None:
    with started(probe()) as made:
        real = made.reading
        made.simulate(Reading(ram_available=5, disk_free=7))
        assert made.reading.simulated
        assert (made.reading.ram_available, made.reading.disk_free) == (5, 7)
        assert made.reading.ram_total == real.ram_total
        made.simulate(None)
        assert made.reading == real


def test_a_context_made_smaller_shows_in_simulated_vram() -> None:
    with started(probe()) as made:
        made.own_bytes = 600
        made.simulate(Reading(vram_total=1000, vram_others=350))
        assert (made.reading.vram_free, made.reading.vram_ours) == (50, 600)
        made.own_bytes = 500
        assert (made.reading.vram_free, made.reading.vram_ours) == (150, 500)


def test_others_follow_from_what_is_free() -> None:
    merged = overlay(Reading(vram_total=1000, vram_free=600, vram_ours=300), Reading(vram_free=100), 0)
    assert (merged.vram_total, merged.vram_ours, merged.vram_others) == (1000, 300, 600)


def test_vram_of_unknown_size_stays_unknown() -> None:
    assert overlay(Reading(), Reading(vram_free=100), 0).vram_total is None


_BYTES = st.none() | st.integers(0, 1000)
_READINGS = st.builds(
    Reading,
    gpu=st.sampled_from(["", "Card"]),
    vram_total=st.none() | st.integers(1, 1000),
    vram_free=_BYTES,
    vram_ours=_BYTES,
    vram_others=_BYTES,
    gpu_load=st.none() | st.floats(0, 1),
    ram_total=st.none() | st.integers(1, 1000),
    ram_available=_BYTES,
    disk_total=st.none() | st.integers(1, 1000),
    disk_free=_BYTES,
)


@given(_READINGS, _READINGS, st.integers(0, 1000))
def test_a_simulation_is_consistent_whatever_is_given(real: Reading, given: Reading, own: int) -> None:
    merged = overlay(real, given, own)
    assert merged.simulated
    for name in ("gpu_load", "vram_total", "vram_ours", "vram_others", "ram_total", "disk_total"):
        if getattr(given, name) is not None:
            assert getattr(merged, name) == getattr(given, name)
    if given.vram_total is not None:
        assert merged.vram_free is not None
        assert merged.vram_others is not None
        assert 0 <= merged.vram_free <= given.vram_total
    for total, free in ((merged.ram_total, merged.ram_available), (merged.disk_total, merged.disk_free)):
        assert total is None or free is None or free <= max(total, 0)


def test_close_does_not_wait_for_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STOP_S", 0.01)
    hangs, release = threading.Event(), threading.Event()
    library = FakeNvml()

    def first_answers_then_hangs() -> Callable[[str], tuple[int, int]]:
        answers = iter([(1, 2)])

        def ask(name: str) -> tuple[int, int]:
            if (answer := next(answers, None)) is not None:
                return answer
            hangs.set()
            release.wait(30)
            return 1, 2

        return ask

    made = probe(OTHER, poll_s=0.001, nvml=Nvml(library), ask=first_answers_then_hangs())
    made.start()
    assert hangs.wait(30)
    made.close()
    assert made.reading.vram_total == 2
    release.set()
