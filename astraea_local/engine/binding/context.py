"""A KV cache and the batches that are computed in it."""

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from astraea_local.engine.binding.library import (
    BindingError,
    Bytes,
    Handle,
    Logits,
    Tokens,
    Vector,
    as_pointer,
    log,
)
from astraea_local.engine.binding.model import Model, Pooling

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
KV_TYPES = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16; the binding stops at 29
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "q4_0": lib.GGML_TYPE_Q4_0,
}
_FLASH = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True, slots=True)
class ContextParams:
    """How a context is made; see `profile.ContextSettings` and `profile.KvSettings`."""

    n_ctx: int
    n_seq: int
    n_batch: int = 512
    n_ubatch: int = 512
    unified: bool = False
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    threads: int = 1
    pooling: Pooling | None = None
    """How embeddings are made of the outputs; None = the context gives logits only."""


class Context(Handle):
    """A KV cache and the compute buffers around it."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        """Allocates everything at once. Raises `BindingError` when memory does not suffice."""
        c = lib.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch, c.n_seq_max = (
            params.n_ctx,
            params.n_batch,
            params.n_ubatch,
            params.n_seq,
        )
        c.n_threads = c.n_threads_batch = params.threads
        c.type_k, c.type_v = KV_TYPES[params.type_k], KV_TYPES[params.type_v]
        c.flash_attn_type = _FLASH[params.flash_attention]
        c.kv_unified = params.unified
        c.swa_full = True
        c.offload_kqv = True
        c.no_perf = True
        if params.pooling is not None:
            c.embeddings, c.pooling_type = True, params.pooling
        log.recent.clear()
        self._pointer = lib.llama_init_from_model(model.pointer, c)
        if not self._pointer:
            reasons = [line for line in log.recent if "error" in line.lower() or "failed" in line.lower()]
            raise BindingError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens "
                f"({reasons[0] if reasons else 'no reason given'}): lower context.size or kv.type_k/type_v"
            )
        self.params = params
        self.n_vocab = model.vocab.n_tokens
        self._n_embd = model.n_embd
        self.n_ctx = int(lib.llama_n_ctx(self._pointer))
        self.n_ctx_seq = int(lib.llama_n_ctx_seq(self._pointer))
        self._memory = lib.llama_get_memory(self._pointer)
        if not self._memory:
            self.close()
            raise BindingError(
                f"{model.path}: models that keep no KV (encoders such as BERT, diffusion models) are not "
                "supported; use a decoder model"
            )

    def close(self) -> None:
        if self._pointer is not None:
            lib.llama_free(self._pointer)
            self._pointer = None

    def decode(self, batch: "Batch") -> int:
        """`llama_decode`: 0 = done, 1 = no room and nothing changed, 2 = aborted, negative = error."""
        return int(lib.llama_decode(self._pointer, batch.raw))

    def logits(self, index: int) -> Logits:
        """The logits of the batch's token `index`, shape (n_vocab,); a view valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self._pointer, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def embedding(self, seq: int) -> Vector:
        """The sequence's outputs of the last decode pooled, shape (n_embd,); a view valid until the next.

        `llama_get_embeddings_seq`, which pools within one ubatch; of a context with `params.pooling`. Raises
        `BindingError` when there are none.
        """
        pointer = lib.llama_get_embeddings_seq(self._pointer, seq)
        if not pointer:
            raise BindingError("llama.cpp gives no embeddings for models of this architecture")
        return np.ctypeslib.as_array(pointer, shape=(self._n_embd,))

    def synchronize(self) -> None:
        """Waits for the device; timings taken before it measure nothing on a GPU."""
        lib.llama_synchronize(self._pointer)

    def seq_rm(self, seq: int, start: int = -1, end: int = -1) -> bool:
        """Removes positions [start, end); False when the model cannot remove a part (recurrent)."""
        return bool(lib.llama_memory_seq_rm(self._memory, seq, start, end))

    def seq_cp(self, source: int, target: int, start: int = -1, end: int = -1) -> None:
        """Copies positions by reference (unified) or as a whole (per-slot: only the full range is legal)."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, end)

    def seq_end(self, seq: int) -> int:
        """Number of positions the sequence spans; 0 when empty."""
        return int(lib.llama_memory_seq_pos_max(self._memory, seq)) + 1

    def clear(self) -> None:
        """Empties every sequence."""
        lib.llama_memory_clear(self._memory, False)

    def state_size(self, seq: int) -> int:
        """Bytes that `state_save` will write."""
        return int(lib.llama_state_seq_get_size(self._pointer, seq))

    def state_save(self, seq: int, buffer: Bytes) -> int:
        """Writes the sequence's KV state into `buffer` (uint8); returns bytes written, 0 on failure."""
        return int(
            lib.llama_state_seq_get_data(self._pointer, as_pointer(buffer, ctypes.c_uint8), len(buffer), seq)
        )

    def state_load(self, seq: int, buffer: Bytes) -> bool:
        """Replaces the sequence's KV state; False leaves the sequence EMPTY (llama.cpp's behaviour)."""
        data = as_pointer(buffer, ctypes.c_uint8)
        return bool(lib.llama_state_seq_set_data(self._pointer, data, len(buffer), seq))


class Batch(Handle):
    """The tokens of one step, filled through numpy views of llama.cpp's own arrays."""

    def __init__(self, capacity: int) -> None:
        self.raw = lib.llama_batch_init(capacity, 0, 1)
        self.capacity = capacity

        def view(pointer: Any, shape: int = capacity) -> npt.NDArray[Any]:
            return np.ctypeslib.as_array(pointer, shape=(shape,))

        self._token, self._pos = view(self.raw.token), view(self.raw.pos)
        self._wants_logits = view(self.raw.logits)
        view(self.raw.n_seq_id)[:] = 1
        # Each token's list of sequence ids is allocated on its own: redirect them into one array.
        self._seq = np.zeros(capacity, dtype=np.int32)
        self._original = [ctypes.addressof(self.raw.seq_id[i].contents) for i in range(capacity)]
        base, step = self._seq.ctypes.data, self._seq.itemsize
        self._set_seq_pointers([base + i * step for i in range(capacity)])
        self._open = True

    def _set_seq_pointers(self, addresses: list[int]) -> None:
        table = ctypes.cast(self.raw.seq_id, ctypes.POINTER(ctypes.c_void_p))
        for i, address in enumerate(addresses):
            table[i] = address

    def close(self) -> None:
        if self._open:
            self._open = False
            self._set_seq_pointers(self._original)
            lib.llama_batch_free(self.raw)

    def __len__(self) -> int:
        return int(self.raw.n_tokens)

    def clear(self) -> None:
        self.raw.n_tokens = 0

    def add(self, tokens: Tokens, position: int, seq: int, *, last_logits: bool) -> int:
        """Appends consecutive tokens of one sequence; returns the batch index of the last one."""
        start = self.raw.n_tokens
        end = start + len(tokens)
        self._token[start:end] = tokens
        self._pos[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._seq[start:end] = seq
        self._wants_logits[start:end] = 0
        self._wants_logits[end - 1] = last_logits
        self.raw.n_tokens = end
        return int(end - 1)

    def want_all(self) -> None:
        """Asks for the output of every token, as pooling needs."""
        self._wants_logits[: self.raw.n_tokens] = 1
