"""Reads the facts: the llama.cpp build, NVML, the host, the model's header. Nothing here raises."""

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import psutil

from astraea_local import model_source
from astraea_local.doctor.report import Build, Device, Gpu, Host, ModelFacts
from astraea_local.profile import KvSettings, KvType

if TYPE_CHECKING:
    from astraea_local.engine import binding

_ELEMENTS_PER_BLOCK = 32
_BYTES_PER_BLOCK: dict[KvType, int] = {
    "f32": 128,
    "f16": 64,
    "bf16": 64,
    "q8_0": 34,
    "q5_1": 24,
    "q5_0": 22,
    "q4_1": 20,
    "q4_0": 18,
}


def read_build() -> Build | str:
    """The installed llama.cpp, or why it cannot be used."""
    try:
        from astraea_local.engine import binding

        info = binding.build_info()
    except Exception as error:
        # A library that is missing, built for another machine or of another version fails in many ways.
        return str(error) or type(error).__name__
    return Build(
        version=info.version,
        gpu_offload=info.gpu_offload,
        cpu_features=tuple(re.findall(r"(\w+) = 1\b", info.system)),
        devices=tuple(
            Device(name=d.name, description=d.description, is_gpu=d.is_gpu, free=d.free, total=d.total)
            for d in info.devices
        ),
        amx_off=info.amx_off,
    )


def read_gpus(nvml: Any) -> tuple[list[Gpu], str]:
    """The NVIDIA GPUs that the module `nvml` (pynvml) sees, and one line on how the reading went."""

    def ask(question: str, *args: Any) -> Any:
        # One reading may be refused (MIG) or not exist (memory shared with the CPU): the others still count.
        try:
            return getattr(nvml, question)(*args)
        except nvml.NVMLError:
            return None

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"sees no NVIDIA GPU: {error}"
    try:
        driver = _text(ask("nvmlSystemGetDriverVersion"))
        gpus = [_gpu(ask, index, driver) for index in range(ask("nvmlDeviceGetCount") or 0)]
    finally:
        ask("nvmlShutdown")
    return gpus, f"sees {len(gpus)} NVIDIA GPU{'' if len(gpus) == 1 else 's'}"


def _gpu(ask: Any, index: int, driver: str | None) -> Gpu:
    handle = ask("nvmlDeviceGetHandleByIndex", index)
    if handle is None:
        return Gpu(name=f"GPU {index}", driver=driver)
    name = _text(ask("nvmlDeviceGetName", handle)) or f"GPU {index}"
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    if memory is None:
        return Gpu(name=name, driver=driver)
    return Gpu(name=name, driver=driver, total=memory.total, free=memory.free, used=memory.used)


def _text(value: Any) -> str | None:
    # Older drivers' bindings answer in bytes.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_host() -> Host:
    """Cores, memory, and free disk of the cache folder and of the folder that models are downloaded to."""
    logical = os.cpu_count() or 1
    memory = psutil.virtual_memory()
    folders = (platformdirs.user_cache_path("astraea-local"), model_source.download_folder())
    return Host(
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        ram_total=memory.total,
        ram_available=memory.available,
        disk_free={str(folder): _free(folder) for folder in folders},
    )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def read_model(path: Path, kv: KvSettings) -> ModelFacts | str:
    """What the GGUF at `path` says of itself, its KV in the types of `kv`; or why it cannot be loaded."""
    from astraea_local.engine import binding

    try:
        size = sum(part.stat().st_size for part in model_source.parts(path))
        with binding.Model(path, vocab_only=True) as model:
            return ModelFacts(
                path=str(path),
                architecture=model.metadata("general.architecture") or "unknown",
                file_bytes=size,
                layers=_number(model, "block_count"),
                heads=_number(model, "attention.head_count"),
                embedding=_number(model, "embedding_length"),
                vocabulary=model.vocab.n_tokens,
                trained_context=_number(model, "context_length"),
                kv_bytes_per_token=kv_bytes_per_token(model, kv.type_k, kv.type_v),
            )
    except binding.BindingError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror}: download the model again"


def kv_bytes_per_token(model: "binding.Model", type_k: KvType, type_v: KvType) -> int:
    """Bytes of KV cache per token, from the header of `model` (`vocab_only` suffices).

    Exact where every layer attends alike, otherwise an upper bound; 0 for a model without attention.
    """
    heads = _number(model, "attention.head_count")
    if heads == 0:
        return 0
    # A model whose layers differ stores a list here, which is not readable as one number.
    kv_heads = _number(model, "attention.head_count_kv") or heads
    plain = _number(model, "embedding_length") // heads
    k = kv_heads * (_number(model, "attention.key_length") or plain) * _BYTES_PER_BLOCK[type_k]
    v = kv_heads * (_number(model, "attention.value_length") or plain) * _BYTES_PER_BLOCK[type_v]
    return _number(model, "block_count") * (k + v) // _ELEMENTS_PER_BLOCK


def _number(model: "binding.Model", key: str) -> int:
    text = model.metadata(f"{model.metadata('general.architecture')}.{key}") or ""
    return int(text) if text.isdecimal() else 0
