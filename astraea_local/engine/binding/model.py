"""A GGUF file: its weights, its metadata, its tokenizer."""

import ctypes
import enum
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from astraea_local.engine.binding import amx
from astraea_local.engine.binding.library import (
    Handle,
    ModelLoadError,
    Tokens,
    as_pointer,
    log,
    start_backend,
)

_FILE_TYPES = {
    value: name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
    for name, value in vars(lib).items()
    if name.startswith("LLAMA_FTYPE_") and isinstance(value, int)
}
_SPLIT = {"none": 0, "layer": 1}


class ModelClass(enum.StrEnum):
    """How a model remembers; decides what may be done with its KV (asked at load, never assumed)."""

    FULL = "full attention"
    SWA = "sliding window"
    RECURRENT = "recurrent"
    HYBRID = "hybrid"

    @property
    def can_trim(self) -> bool:
        """Whether the tail of a sequence can be removed, so that any common prefix is reusable."""
        return self in (ModelClass.FULL, ModelClass.SWA)


class Pooling(enum.IntEnum):
    """What of an input's outputs its embedding is, numbered as llama.cpp does."""

    MEAN = 1
    CLS = 2
    """The output of the first token."""
    LAST = 3


class Model(Handle):
    """A loaded GGUF; with `vocab_only` just its tokenizer and metadata."""

    def __init__(
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        gpu_layers: int = 0,
        main_gpu: int = 0,
        split: str = "none",
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Loads `path`; `on_progress` gets fractions 0..1. Raises `ModelLoadError`."""
        _check_gguf(path)
        start_backend()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        # The only switch there is; it also turns off the repacking of some types for quicker prefill.
        params.use_extra_bufts = not vocab_only and not amx.must_be_off()
        params.n_gpu_layers = gpu_layers
        params.main_gpu = main_gpu
        params.split_mode = _SPLIT[split]
        # Merely looking at a CUDA device takes hundreds of MB of it; an empty list keeps llama.cpp away.
        no_devices = (ctypes.c_void_p * 1)(None)
        if vocab_only or gpu_layers == 0:
            params.devices = ctypes.cast(no_devices, ctypes.c_void_p)

        def progress(fraction: float, _user: Any) -> bool:
            if on_progress is not None:
                on_progress(fraction)
            return True

        callback = lib.llama_progress_callback(progress)
        params.progress_callback = callback
        log.recent.clear()
        self._pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            reasons = [line for line in log.recent if "error" in line.lower() or "invalid" in line.lower()]
            reason = reasons[0].split(": ", 1)[-1] if reasons else "llama.cpp gave no reason"
            if "corrupted or incomplete" in reason or "failed to load model from" in reason:
                reason += "; the file may be cut off: download it again"
            raise ModelLoadError(f"{path}: llama.cpp cannot load this model: {reason}")
        self.path = path
        self.offloaded = _offloaded(log.recent)
        self.vocab = Vocab(lib.llama_model_get_vocab(self._pointer))

    def close(self) -> None:
        if self._pointer is not None:
            lib.llama_model_free(self._pointer)
            self._pointer = None

    @property
    def pointer(self) -> Any:
        return self._pointer

    @property
    def model_class(self) -> ModelClass:
        """Full attention, sliding window, recurrent or hybrid."""
        if lib.llama_model_is_hybrid(self._pointer):
            return ModelClass.HYBRID
        if lib.llama_model_is_recurrent(self._pointer):
            return ModelClass.RECURRENT
        return ModelClass.SWA if lib.llama_model_n_swa(self._pointer) > 0 else ModelClass.FULL

    @property
    def n_ctx_train(self) -> int:
        return int(lib.llama_model_n_ctx_train(self._pointer))

    @property
    def n_layer(self) -> int:
        return int(lib.llama_model_n_layer(self._pointer))

    @property
    def n_embd(self) -> int:
        """Numbers in an embedding."""
        return int(lib.llama_model_n_embd_out(self._pointer))

    @property
    def pooling(self) -> Pooling | None:
        """How its file says that embeddings are made (`<arch>.pooling_type`); None = it gives none."""
        kind = self._of_architecture("pooling_type") or ""
        return Pooling(int(kind)) if kind in {str(int(known)) for known in Pooling} else None

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it, in the KV, and no others: inputs can be computed in parts."""
        # llama.cpp's graph of that one reads no KV.
        whole = self.metadata("general.architecture") == "llama-embed"
        return not whole and self._of_architecture("attention.causal") != "false"

    @property
    def has_encoder(self) -> bool:
        return bool(lib.llama_model_has_encoder(self._pointer))

    @property
    def size_bytes(self) -> int:
        """Size of all tensors."""
        return int(lib.llama_model_size(self._pointer))

    @property
    def n_params(self) -> int:
        return int(lib.llama_model_n_params(self._pointer))

    @property
    def quantization(self) -> str:
        """What most weights are stored as, for example `Q4_K_M`; empty when the file does not say."""
        kind = self.metadata("general.file_type") or ""
        return _FILE_TYPES.get(int(kind), "") if kind.isdecimal() else ""

    @property
    def description(self) -> str:
        """For example `llama 256M Q4_1`."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source stored in the GGUF, if any."""
        text = lib.llama_model_chat_template(self._pointer, None)
        return None if text is None else text.decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """One metadata value as text."""
        length = lib.llama_model_meta_val_str(self._pointer, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        lib.llama_model_meta_val_str(self._pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _of_architecture(self, key: str) -> str | None:
        return self.metadata(f"{self.metadata('general.architecture')}.{key}")


class Vocab:
    """The tokenizer of a model; valid as long as the model is open."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.n_tokens = int(lib.llama_vocab_n_tokens(pointer))
        self.bos = int(lib.llama_vocab_bos(pointer))
        self.eos = int(lib.llama_vocab_eos(pointer))
        self.add_bos = bool(lib.llama_vocab_get_add_bos(pointer))
        self._buffer = ctypes.create_string_buffer(512)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        """Token ids of `text`, int32; `add_special` adds BOS/EOS where the model wants them."""
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8
        while True:
            out = np.empty(room, dtype=np.int32)
            count = lib.llama_tokenize(
                self.pointer,
                data,
                len(data),
                as_pointer(out, ctypes.c_int32),
                room,
                add_special,
                parse_special,
            )
            if count >= 0:
                return out[:count].copy()
            room = -count

    def piece(self, token: int, *, special: bool) -> bytes:
        """Bytes of one token, possibly a fragment of a character; empty for a hidden special token."""
        length = lib.llama_token_to_piece(self.pointer, token, self._buffer, len(self._buffer), 0, special)
        if length < 0:
            self._buffer = ctypes.create_string_buffer(-length)
            return self.piece(token, special=special)
        return self._buffer.raw[:length]

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(lib.llama_vocab_is_eog(self.pointer, token))

    def is_control(self, token: int) -> bool:
        """Whether the token is a mark of the chat format, which no text can spell."""
        return bool(lib.llama_vocab_get_attr(self.pointer, token) & lib.LLAMA_TOKEN_ATTR_CONTROL)

    def text(self, token: int) -> str:
        """The token's text in the vocabulary, special tokens included; empty for none (-1)."""
        return "" if token < 0 else lib.llama_vocab_get_text(self.pointer, token).decode("utf-8", "replace")


def _check_gguf(path: Path) -> None:
    if not path.exists():
        raise ModelLoadError(f"{path}: no such file")
    if path.is_dir():
        raise ModelLoadError(f"{path}: is a folder; name the .gguf file inside it")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelLoadError(
            f"{path}: not a GGUF file (it starts with {magic!r}); llama.cpp models end in .gguf"
        )


def _offloaded(lines: Sequence[str]) -> str:
    """llama.cpp's own statement, for example `33/33 layers`; `none` when nothing was offloaded."""
    for line in lines:
        if "offloaded" in line and "layers to GPU" in line:
            return f"{line.split('offloaded ')[1].split(' layers')[0]} layers"
    return "none"
