"""The loaded library: its symbols, its log, its errors, and how its objects are freed."""

import ctypes
import logging
from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Any, Self

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_SYMBOLS = """
backend_init model_default_params context_default_params model_load_from_file model_free init_from_model free
get_memory memory_clear memory_seq_rm memory_seq_cp memory_seq_pos_min memory_seq_pos_max memory_can_shift
state_seq_get_size state_seq_get_data state_seq_set_data batch_init batch_free decode synchronize
get_logits_ith get_embeddings_seq n_ctx n_ctx_seq n_batch n_seq_max model_get_vocab model_n_ctx_train
model_n_embd_out model_n_layer model_n_head model_n_head_kv model_n_swa model_size model_n_params model_desc
model_meta_val_str model_chat_template model_is_recurrent model_is_hybrid model_has_encoder vocab_n_tokens
vocab_is_eog vocab_bos vocab_eos vocab_get_add_bos vocab_get_text vocab_get_attr tokenize token_to_piece
sampler_chain_init sampler_chain_add sampler_chain_default_params sampler_init_greedy sampler_init_dist
sampler_init_top_k sampler_init_top_p sampler_init_min_p sampler_init_typical sampler_init_temp
sampler_init_penalties sampler_init_dry sampler_init_logit_bias sampler_init_grammar sampler_apply
sampler_accept sampler_clone sampler_free supports_gpu_offload print_system_info log_set max_devices
""".split()


class BindingError(Exception):
    """llama.cpp refused something; the message is fit for a user."""


class ModelLoadError(BindingError):
    """The file is not a model that llama.cpp can load."""


class LogTap:
    """Sends llama.cpp's log to `logging` and remembers the last lines for error messages."""

    def __init__(self) -> None:
        self.recent: deque[str] = deque(maxlen=400)
        self._logger = logging.getLogger("llama.cpp")
        self._level = logging.DEBUG
        # ggml_log_level 1..4: debug, info, warn, error; 5 continues the line before. Its info is our debug.
        self._names = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
        # Kept here because llama.cpp goes on calling it.
        self.callback = lib.llama_log_callback(self._on_line)

    def _on_line(self, level: int, text: bytes, _user: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if level != 5:
            self._level = self._names.get(level, logging.DEBUG)
        if line.strip(". "):
            self.recent.append(line)
            self._logger.log(self._level, "%s", line)


log = LogTap()


def start_backend() -> None:
    """Checks that every symbol this module needs exists, then starts llama.cpp. Raises `BindingError`."""
    missing = [name for name in _SYMBOLS if not hasattr(lib, f"llama_{name}")]
    if missing:
        raise BindingError(
            f"llama-cpp-python {lib.__version__} lacks llama_{', llama_'.join(missing)}: "
            "install the pinned version with `pip install llama-cpp-python==0.3.36`"
        )
    lib.llama_log_set(log.callback, ctypes.c_void_p(0))
    lib.llama_backend_init()


class Handle(ABC):
    """A C object freed once, by `close` or at the end of a `with` block."""

    _pointer: Any = None

    @abstractmethod
    def close(self) -> None:
        """Frees the C object; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
