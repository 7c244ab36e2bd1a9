"""What the NVIDIA driver says about a GPU. Nothing here raises: a driver that fails is left alone a while."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

_logger = logging.getLogger(__name__)

_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One look at a GPU; bytes, and None where the driver does not tell."""

    total: int | None = None
    free: int | None = None
    used: int | None = None
    """Of all processes; without what the driver keeps for itself, where it tells these apart."""
    ours: int | None = None
    """Of this process; None also when it is not in the driver's list, as in most containers."""
    load: float | None = None
    """0..1."""
    temperature: float | None = None
    """Degrees Celsius."""


class Nvml:
    """A session with the driver, opened when it is first needed and again after a failure."""

    def __init__(self, library: Any = pynvml) -> None:
        """`library` is the module pynvml, or one that behaves like it."""
        self._library = library
        self._pid = os.getpid()
        self._handles: dict[str, Any] = {}
        self._open = False
        self._failed = False
        self._retry_at = float("-inf")

    def read(self, pci: str, now: float) -> GpuReading | None:
        """The GPU with that bus id, or None while the driver does not answer; `now` is monotonic seconds.

        The first failure is logged, and so is the end of it. In between the driver is asked once a minute.
        """
        if now < self._retry_at:
            return None
        try:
            handle = self._handle(pci)
            total, free, used = self._memory(handle)
        except self._library.NVMLError as error:
            self._lose(error, now)
            return None
        if self._failed:
            self._failed = False
            _logger.warning("NVML answers again")
        load = self._ask("nvmlDeviceGetUtilizationRates", handle)
        degrees = self._ask("nvmlDeviceGetTemperature", handle, self._library.NVML_TEMPERATURE_GPU)
        return GpuReading(
            total=total,
            free=free,
            used=used,
            ours=self._ours(handle),
            load=None if load is None else load.gpu / 100,
            temperature=None if degrees is None else float(degrees),
        )

    def close(self) -> None:
        """Ends the session; a later `read` opens a new one."""
        if self._open:
            with suppress(self._library.NVMLError):
                self._library.nvmlShutdown()
        self._open = False
        self._handles.clear()

    def _handle(self, pci: str) -> Any:
        if not self._open:
            self._library.nvmlInit()
            self._open = True
        if pci not in self._handles:
            # ggml numbers the parts of a GPU that it splits: `0000:c1:00.0-v1`.
            self._handles[pci] = self._library.nvmlDeviceGetHandleByPciBusId(pci.partition("-")[0])
        return self._handles[pci]

    def _memory(self, handle: Any) -> tuple[int | None, int | None, int | None]:
        library = self._library
        try:
            memory = library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2)
        except library.NVMLError:
            # An older driver, or a real failure, which then shows here as well.
            try:
                memory = library.nvmlDeviceGetMemoryInfo(handle)
            except (library.NVMLError_NotSupported, library.NVMLError_NoPermission):
                # Memory shared with the CPU, or a part of a divided GPU.
                return None, None, None
        return int(memory.total), int(memory.free), int(memory.used)

    def _ours(self, handle: Any) -> int | None:
        held = [
            process.usedGpuMemory
            for question in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
            for process in self._ask(question, handle) or ()
            if process.pid == self._pid and process.usedGpuMemory is not None
        ]
        # A process that computes and draws is in both lists, each time with all it holds.
        return max(held, default=None)

    def _ask(self, question: str, *args: Any) -> Any:
        try:
            return getattr(self._library, question)(*args)
        except self._library.NVMLError:
            return None

    def _lose(self, error: Exception, now: float) -> None:
        self.close()
        self._retry_at = now + _RETRY_S
        if not self._failed:
            self._failed = True
            _logger.warning(
                "NVML does not answer (%s): GPU memory is asked from llama.cpp; the next try is in %.0f s",
                error,
                _RETRY_S,
            )
