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
from astraea_local.engine.binding.guidance import Guide, Guides, json_grammar, schema_fault
from astraea_local.engine.binding.library import (
    BindingError,
    Bytes,
    Logits,
    ModelLoadError,
    Tokens,
    Vector,
    start_backend,
)
from astraea_local.engine.binding.model import Model, ModelClass, Pooling, Vocab
from astraea_local.engine.binding.pooler import Pooler
from astraea_local.engine.binding.sampler import Candidates, Grammar, SamplerChain

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
    "Guide",
    "Guides",
    "Logits",
    "Model",
    "ModelClass",
    "ModelLoadError",
    "Pooler",
    "Pooling",
    "SamplerChain",
    "Tokens",
    "Vector",
    "Vocab",
    "build_info",
    "device_memory",
    "json_grammar",
    "schema_fault",
    "start_backend",
    "supports_gpu_offload",
    "used_gpus",
]
