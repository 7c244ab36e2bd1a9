"""What this build of llama.cpp can do, and on which devices."""

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
from llama_cpp._ggml import libggml

from astraea_local.engine.binding import amx
from astraea_local.engine.binding.library import start_backend

_GPU, _INTEGRATED_GPU = 1, 2  # ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Device:
    """A compute device as ggml reports it; memory in bytes."""

    name: str
    description: str
    is_gpu: bool
    free: int
    total: int
    integrated: bool = False
    """A GPU whose memory is the host's."""
    pci: str = ""
    """Bus id, `0000:c1:00.0`, by which the driver knows it; empty where unknown."""


class _Caps(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_bool)
        for name in ("async_", "host_buffer", "buffer_from_host_ptr", "events", "mmap_support")
    ]


class _Props(ctypes.Structure):
    """`ggml_backend_dev_props` of the pinned version."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("caps", _Caps),
    ]


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What this llama.cpp build can do."""

    version: str
    gpu_offload: bool
    system: str
    devices: tuple[Device, ...]
    amx_off: bool
    """Its AMX code would end the process, so models are loaded without it."""


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
        amx_off=amx.must_be_off(),
    )


def used_gpus(gpu_layers: int, split: str, main_gpu: int) -> tuple[Device, ...]:
    """The GPUs that a model with these settings is put on, in llama.cpp's order.

    As `llama_model_load_from_file` chooses: integrated GPUs count only where there is no other. To be asked
    when the model is loaded: looking at a CUDA device takes memory of it.
    """
    start_backend()
    if gpu_layers == 0:
        return ()
    gpus = [device for device in _devices() if device.is_gpu]
    gpus = [device for device in gpus if not device.integrated] or gpus
    return tuple(gpus if split == "layer" else gpus[main_gpu : main_gpu + 1])


def device_memory(name: str) -> tuple[int, int]:
    """(free, total) bytes of that device as its backend reports them; (0, 0) when it does not know.

    May be called from any thread.
    """
    device = ctypes.c_void_p(_ggml("ggml_backend_dev_by_name", ctypes.c_void_p, name.encode()))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if device:
        _ggml("ggml_backend_dev_memory", None, device, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def _devices() -> list[Device]:
    found = []
    for index in range(_ggml("ggml_backend_dev_count", ctypes.c_size_t)):
        device = ctypes.c_void_p(_ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(index)))
        props = _Props()
        _ggml("ggml_backend_dev_get_props", None, device, ctypes.byref(props))
        found.append(
            Device(
                name=props.name.decode(),
                description=props.description.decode(),
                is_gpu=props.type in (_GPU, _INTEGRATED_GPU),
                free=props.memory_free,
                total=props.memory_total,
                integrated=props.type == _INTEGRATED_GPU,
                pci=(props.device_id or b"").decode(),
            )
        )
    return found


def _ggml(name: str, result: Any, *args: Any) -> Any:
    # A function object of its own for each call: `libggml` shares one, and another thread may be using it.
    function = libggml[name]
    function.restype = result
    return function(*args)
