"""How full the machine's memories are: GPU, host, and the disk that holds parked states."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import psutil

from astraea_local.engine.binding import Device, device_memory
from astraea_local.engine.nvml import GpuReading, Nvml

_logger = logging.getLogger(__name__)

_RETRY_S = 60.0
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at all memories; bytes, and None where nothing tells."""

    gpu: str = ""
    """Name of the GPU; empty without one."""
    vram_total: int | None = None
    vram_free: int | None = None
    vram_ours: int | None = None
    """Of the engine process."""
    vram_others: int | None = None
    """Of other processes."""
    gpu_load: float | None = None
    """0..1."""
    gpu_temperature: float | None = None
    """Degrees Celsius."""
    ram_total: int | None = None
    ram_available: int | None = None
    """What programs can take before anything is swapped."""
    ram_ours: int | None = None
    """Resident memory of the engine process."""
    disk_total: int | None = None
    disk_free: int | None = None
    simulated: bool = False
    """Whether a user gave some of it."""


def overlay(real: Reading, given: Reading, own_bytes: int) -> Reading:
    """`real` with everything replaced that `given` knows, as a simulation of it.

    Total VRAM is what we hold, what others hold and what is free: what of this is not given follows from the
    rest, so that a context which is made smaller shows in the free memory. `own_bytes` is what the engine
    holds by its own count, for machines on which nothing else says so.
    """
    known = {
        field.name: value
        for field in fields(Reading)
        if (value := getattr(given, field.name)) not in (None, "")
    }
    merged = replace(real, **known | {"simulated": True})
    if known.keys() & {"vram_total", "vram_free", "vram_ours", "vram_others"}:
        merged = _vram_adds_up(merged, given, own_bytes)
    if merged.ram_total is not None and merged.ram_available is not None:
        merged = replace(merged, ram_available=min(merged.ram_available, merged.ram_total))
    if merged.disk_total is not None and merged.disk_free is not None:
        merged = replace(merged, disk_free=min(merged.disk_free, merged.disk_total))
    return merged


def _vram_adds_up(merged: Reading, given: Reading, own_bytes: int) -> Reading:
    total = merged.vram_total
    if total is None:
        return merged
    ours = own_bytes if merged.vram_ours is None else merged.vram_ours
    if given.vram_free is not None:
        free = min(given.vram_free, total)
        others = max(0, total - free - ours) if given.vram_others is None else given.vram_others
    else:
        others = merged.vram_others or 0
        free = max(0, total - ours - others)
    return replace(merged, vram_free=free, vram_ours=ours, vram_others=others)


class MemoryProbe:
    """Reads all memories, again and again, in a thread of its own.

    A look costs 0.1 ms on a machine without a GPU, but the driver of one may take many milliseconds, or block
    while another process allocates: too long for the step loop, which only picks up the newest reading.
    """

    def __init__(
        self,
        gpus: Sequence[Device],
        folder: Path,
        poll_s: float,
        *,
        nvml: Nvml | None = None,
        ask: Callable[[str], tuple[int, int]] = device_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gpus` are those that hold the model (`binding.used_gpus`); of several the fullest is reported.

        `folder` is where parked states go; it need not exist yet. `ask` says what llama.cpp knows about the
        memory of a device: (free, total) bytes, total 0 when it does not know.
        """
        self.own_bytes = 0
        """Weights and context as the engine counts them: stands in where no driver tells processes apart."""
        self._nvml = nvml or Nvml()
        self._gpus = [_Gpu(device, self._nvml, ask) for device in gpus]
        self._folder = folder
        self._poll_s = poll_s
        self._clock = clock
        self._process = psutil.Process()
        self._latest = Reading()
        self._given: Reading | None = None
        self._failed = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Takes the first reading at once, and further ones in a thread."""
        self._latest = self._look()
        self._thread = threading.Thread(target=self._run, name="memory-probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; waits for a reading that is being taken, but not for a driver that hangs."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                return
        self._nvml.close()

    def simulate(self, given: Reading | None) -> None:
        """From now on what `given` knows replaces what is read; None ends it."""
        self._given = given

    @property
    def reading(self) -> Reading:
        """The newest one, at most one poll old."""
        return self._latest if self._given is None else overlay(self._latest, self._given, self.own_bytes)

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self._latest = self._look()

    def _look(self) -> Reading:
        try:
            return self._read()
        except Exception:
            # A driver or a kernel that answers with nonsense must not end the readings, nor fill the log.
            if not self._failed:
                self._failed = True
                _logger.exception("memory cannot be read; this is not reported again")
            return Reading()

    def _read(self) -> Reading:
        ram = psutil.virtual_memory()
        disk = _disk(self._folder)
        return replace(
            self._read_gpu(),
            ram_total=ram.total,
            ram_available=ram.available,
            ram_ours=self._process.memory_info().rss,
            disk_total=None if disk is None else disk[0],
            disk_free=None if disk is None else disk[1],
        )

    def _read_gpu(self) -> Reading:
        now = self._clock()
        readings = [gpu.read(self.own_bytes, now) for gpu in self._gpus]
        return max(readings, key=_share, default=Reading())


class _Gpu:
    """One GPU: by NVML where that works, by llama.cpp's backend otherwise."""

    def __init__(self, device: Device, nvml: Nvml, ask: Callable[[str], tuple[int, int]]) -> None:
        self._device = device
        self._nvml = nvml
        self._ask = ask
        nvidia = device.name.startswith("CUDA") or "NVIDIA" in device.description
        self._pci = device.pci if nvidia else ""
        self._ask_again_at = float("-inf")

    def read(self, own_bytes: int, now: float) -> Reading:
        found = self._nvml.read(self._pci, now) if self._pci else None
        found = found or GpuReading()
        if found.total is None or found.free is None or found.used is None:
            free, total = self._ask_backend(now)
            if not total:
                return self._named(found)
            found = replace(found, total=total, free=min(free, total), used=max(0, total - free))
        assert found.used is not None
        ours = min(own_bytes, found.used) if found.ours is None else found.ours
        return replace(
            self._named(found),
            vram_total=found.total,
            vram_free=found.free,
            vram_ours=ours,
            vram_others=max(0, found.used - ours),
        )

    def _ask_backend(self, now: float) -> tuple[int, int]:
        if now < self._ask_again_at:
            return 0, 0
        free, total = self._ask(self._device.name)
        if not total:
            self._ask_again_at = now + _RETRY_S
        return free, total

    def _named(self, found: GpuReading) -> Reading:
        name = self._device.description or self._device.name
        return Reading(gpu=name, gpu_load=found.load, gpu_temperature=found.temperature)


def _share(reading: Reading) -> float:
    if not reading.vram_total or reading.vram_free is None:
        return -1.0
    return 1 - reading.vram_free / reading.vram_total


def _disk(folder: Path) -> tuple[int, int] | None:
    """(total, free) bytes of the disk that a folder is on, or will be."""
    for place in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return usage.total, usage.free
    return None
