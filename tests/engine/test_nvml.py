"""Readings from the NVIDIA driver, of which a stand-in plays the part: present, refusing, failing, gone."""

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from astraea_local.engine.nvml import GpuReading, Nvml

MIB = 1 << 20
PCI = "0000:c1:00.0"


class FakeNvml:
    """The part of pynvml that is used; `broken` maps the names of calls to what they raise."""

    NVML_TEMPERATURE_GPU = 0
    nvmlMemory_v2 = 2  # noqa: N815

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    class NVMLError_NoPermission(NVMLError):  # noqa: N801
        pass

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.sessions = 0
        self.reserved = 300 * MIB
        self.compute: list[tuple[int, int | None]] = [(os.getpid(), 2000 * MIB), (1, 500 * MIB)]
        self.graphics: list[tuple[int, int | None]] = []
        self.has_v2 = True

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.broken[name]

    def nvmlInit(self) -> None:  # noqa: N802
        self._call("nvmlInit")
        self.sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._call("nvmlShutdown")
        self.sessions -= 1

    def nvmlDeviceGetHandleByPciBusId(self, pci: str) -> str:  # noqa: N802
        self._call("nvmlDeviceGetHandleByPciBusId")
        return pci

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> SimpleNamespace:  # noqa: N802
        self._call("nvmlDeviceGetMemoryInfo")
        assert handle == PCI
        if version is not None and not self.has_v2:
            raise self.NVMLError("Function Not Found")
        used = 2500 * MIB + (0 if version else self.reserved)
        return SimpleNamespace(total=8192 * MIB, free=(8192 - 2500) * MIB - self.reserved, used=used)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        self._call("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetTemperature")
        return 61

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        self._call("nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.compute]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        self._call("nvmlDeviceGetGraphicsRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.graphics]


def read(nvml: Nvml, now: float = 0.0) -> GpuReading:
    found = nvml.read(PCI, now)
    assert found is not None
    return found


def test_a_reading_knows_our_share_and_leaves_the_drivers_out() -> None:
    found = read(Nvml(FakeNvml()))
    assert (found.total, found.used, found.ours) == (8192 * MIB, 2500 * MIB, 2000 * MIB)
    assert found.free == 8192 * MIB - 2500 * MIB - 300 * MIB
    assert (found.load, found.temperature) == (0.37, 61.0)


def test_the_session_is_opened_once_and_closed() -> None:
    library = FakeNvml()
    nvml = Nvml(library)
    for now in range(5):
        read(nvml, now)
    assert library.calls.count("nvmlInit") == 1
    assert library.calls.count("nvmlDeviceGetHandleByPciBusId") == 1
    nvml.close()
    nvml.close()
    assert library.sessions == 0


def test_an_older_driver_has_only_the_older_call() -> None:
    library = FakeNvml()
    library.has_v2 = False
    assert read(Nvml(library)).used == 2800 * MIB


@pytest.mark.parametrize("listed", [[], [(1, 500 * MIB)], [(os.getpid(), None)]])
def test_our_share_is_unknown_where_the_driver_does_not_list_us(listed: list[Any]) -> None:
    library = FakeNvml()
    library.compute = listed
    assert read(Nvml(library)).ours is None


def test_a_process_in_both_lists_counts_once() -> None:
    library = FakeNvml()
    library.graphics = list(library.compute)
    assert read(Nvml(library)).ours == 2000 * MIB


def test_what_is_refused_is_unknown_and_the_rest_is_known() -> None:
    library = FakeNvml()
    for name in ("UtilizationRates", "Temperature", "ComputeRunningProcesses", "GraphicsRunningProcesses"):
        library.broken[f"nvmlDeviceGet{name}"] = FakeNvml.NVMLError("Not Supported")
    found = read(Nvml(library))
    assert (found.load, found.temperature, found.ours) == (None, None, None)
    assert found.total == 8192 * MIB


@pytest.mark.parametrize("kind", [FakeNvml.NVMLError_NotSupported, FakeNvml.NVMLError_NoPermission])
def test_memory_that_is_shared_or_divided_is_unknown_but_no_failure(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeNvml()
    library.broken["nvmlDeviceGetMemoryInfo"] = kind("refused")
    found = read(Nvml(library))
    assert (found.total, found.free, found.used) == (None, None, None)
    assert found.temperature == 61.0
    assert not caplog.records


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetMemoryInfo"])
def test_a_failure_is_one_line_and_rare_retries(call: str, caplog: pytest.LogCaptureFixture) -> None:
    library = FakeNvml()
    nvml = Nvml(library)
    library.broken[call] = FakeNvml.NVMLError("GPU is lost")
    with caplog.at_level(logging.INFO):
        for now in range(200):
            assert nvml.read(PCI, now) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "GPU is lost" in caplog.text
    assert library.calls.count("nvmlInit") == 4
    assert library.sessions == 0


def test_a_device_that_vanishes_in_the_middle_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    library = FakeNvml()
    nvml = Nvml(library)
    assert read(nvml, 0).ours == 2000 * MIB
    library.broken["nvmlDeviceGetMemoryInfo"] = FakeNvml.NVMLError("Unknown Error")
    assert nvml.read(PCI, 1) is None
    library.broken.clear()
    assert nvml.read(PCI, 2) is None
    assert read(nvml, 61).ours == 2000 * MIB
    assert [record.getMessage() for record in caplog.records][1:] == ["NVML answers again"]
    assert library.sessions == 1


def test_a_shutdown_that_fails_is_no_concern_of_ours() -> None:
    library = FakeNvml()
    nvml = Nvml(library)
    read(nvml)
    library.broken["nvmlShutdown"] = FakeNvml.NVMLError("Uninitialized")
    nvml.close()
    assert read(nvml).total == 8192 * MIB


def test_a_machine_without_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    nvml = Nvml()
    if nvml.read("0000:ff:1f.7", 0.0) is not None:
        pytest.skip("there is a GPU at an address that no machine should have")
    assert "NVML does not answer" in caplog.text
    nvml.close()
