"""Typed wrapper over llama.cpp's low-level API; nothing outside this package imports `llama_cpp`.

One thread owns a `Context` and everything made from it. Sizes are tokens unless a name says bytes.
"""

from astraea_local.engine.binding.build import (
    BuildInfo,
    Device,
    build_info,
    device_memory,
    supports_gpu_offload,
    used_gpus,
)
from astraea_local.engine.binding.context import KV_TYPES, MAX_SEQUENCES, Batch, Context, ContextParams
from astraea_local.engine.binding.library import (
    BindingError,
    Bytes,
    Logits,
    ModelLoadError,
    Tokens,
    start_backend,
)
from astraea_local.engine.binding.model import Model, ModelClass, Vocab
from astraea_local.engine.binding.sampler import Candidates, Grammar, SamplerChain, schema_to_gbnf

__all__ = [
    "KV_TYPES",
    "MAX_SEQUENCES",
    "Batch",
    "BindingError",
    "BuildInfo",
    "Bytes",
    "Candidates",
    "Context",
    "ContextParams",
    "Device",
    "Grammar",
    "Logits",
    "Model",
    "ModelClass",
    "ModelLoadError",
    "SamplerChain",
    "Tokens",
    "Vocab",
    "build_info",
    "device_memory",
    "schema_to_gbnf",
    "start_backend",
    "supports_gpu_offload",
    "used_gpus",
]
