"""What this build of llama.cpp can do, and on which devices."""

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
from llama_cpp._ggml import libggml

from astraea_local.engine.binding.library import start_backend


@dataclass(frozen=True, slots=True)
class Device:
    """A compute device as ggml reports it; memory in bytes."""

    name: str
    description: str
    is_gpu: bool
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What this llama.cpp build can do."""

    version: str
    gpu_offload: bool
    system: str
    devices: tuple[Device, ...]


def supports_gpu_offload() -> bool:
    """Whether this build of llama.cpp has a GPU backend at all."""
    return bool(lib.llama_supports_gpu_offload())


def build_info() -> BuildInfo:
    """The installed llama.cpp: version, CPU features, and the devices its backends found."""
    start_backend()
    return BuildInfo(
        version=lib.__version__,
        gpu_offload=supports_gpu_offload(),
        system=lib.llama_print_system_info().decode(),
        devices=tuple(_devices()),
    )


def _devices() -> list[Device]:
    def call(name: str, result: Any, *args: Any) -> Any:
        function = getattr(libggml, name)
        function.restype = result
        return function(*args)

    found = []
    for index in range(call("ggml_backend_dev_count", ctypes.c_size_t)):
        device = ctypes.c_void_p(call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(index)))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("ggml_backend_dev_memory", None, device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                name=call("ggml_backend_dev_name", ctypes.c_char_p, device).decode(),
                description=call("ggml_backend_dev_description", ctypes.c_char_p, device).decode(),
                is_gpu=call("ggml_backend_dev_type", ctypes.c_int, device) in (1, 2),
                free=free.value,
                total=total.value,
            )
        )
    return found
