"""Typed wrapper over llama.cpp's low-level API; the only importer of `llama_cpp`.

One thread owns a `Context` and everything made from it. Sizes are tokens unless a name says bytes.
"""

import ctypes
import enum
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp as lib
import numpy as np
import numpy.typing as npt
from llama_cpp import llama_grammar

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

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
_SPLIT = {"none": 0, "layer": 1}
_FLASH = {"auto": -1, "off": 0, "on": 1}
_SYMBOLS = """
backend_init model_default_params context_default_params model_load_from_file model_free init_from_model free
get_memory memory_clear memory_seq_rm memory_seq_cp memory_seq_pos_min memory_seq_pos_max memory_can_shift
state_seq_get_size state_seq_get_data state_seq_set_data batch_init batch_free decode synchronize
get_logits_ith n_ctx n_ctx_seq n_batch n_seq_max model_get_vocab model_n_ctx_train model_n_embd model_n_layer
model_n_head model_n_head_kv model_n_swa model_size model_n_params model_desc model_meta_val_str
model_chat_template model_is_recurrent model_is_hybrid model_has_encoder vocab_n_tokens vocab_is_eog
vocab_bos vocab_eos vocab_get_add_bos vocab_get_text tokenize token_to_piece sampler_chain_init
sampler_chain_add sampler_chain_default_params sampler_init_greedy sampler_init_dist sampler_init_top_k
sampler_init_top_p sampler_init_min_p sampler_init_typical sampler_init_temp sampler_init_penalties
sampler_init_dry sampler_init_logit_bias sampler_init_grammar sampler_apply sampler_accept sampler_clone
sampler_free supports_gpu_offload print_system_info log_set max_devices
""".split()


class BindingError(Exception):
    """llama.cpp refused something; the message is fit for a user."""


class ModelLoadError(BindingError):
    """The file is not a model that llama.cpp can load."""


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


class _LogTap:
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


_log = _LogTap()


def start_backend() -> None:
    """Checks that every symbol this module needs exists, then starts llama.cpp. Raises `BindingError`."""
    missing = [name for name in _SYMBOLS if not hasattr(lib, f"llama_{name}")]
    if missing:
        raise BindingError(
            f"llama-cpp-python {lib.__version__} lacks llama_{', llama_'.join(missing)}: "
            "install the pinned version with `pip install llama-cpp-python==0.3.36`"
        )
    lib.llama_log_set(_log.callback, ctypes.c_void_p(0))
    lib.llama_backend_init()


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
    from llama_cpp._ggml import libggml

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


class _Handle:
    """A C object freed once, by `close` or at the end of a `with` block."""

    _pointer: Any = None

    def close(self) -> None:
        """Frees the C object; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Model(_Handle):
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
        _log.recent.clear()
        self._pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            reasons = [line for line in _log.recent if "error" in line.lower() or "invalid" in line.lower()]
            reason = reasons[0].split(": ", 1)[-1] if reasons else "llama.cpp gave no reason"
            raise ModelLoadError(f"{path}: llama.cpp cannot load this model: {reason}")
        self.path = path
        self.offloaded = _offloaded(_log.recent)
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
                self.pointer, data, len(data), _as(out, ctypes.c_int32), room, add_special, parse_special
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

    def text(self, token: int) -> str:
        """The token's text in the vocabulary, special tokens included; empty for none (-1)."""
        return "" if token < 0 else lib.llama_vocab_get_text(self.pointer, token).decode("utf-8", "replace")


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


class Context(_Handle):
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
        _log.recent.clear()
        self._pointer = lib.llama_init_from_model(model.pointer, c)
        if not self._pointer:
            reasons = [line for line in _log.recent if "error" in line.lower() or "failed" in line.lower()]
            raise BindingError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens "
                f"({reasons[0] if reasons else 'no reason given'}): lower context.size or kv.type_k/type_v"
            )
        self.params = params
        self.n_vocab = model.vocab.n_tokens
        self.n_ctx = int(lib.llama_n_ctx(self._pointer))
        self.n_ctx_seq = int(lib.llama_n_ctx_seq(self._pointer))
        self._memory = lib.llama_get_memory(self._pointer)

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
        return int(lib.llama_state_seq_get_data(self._pointer, _as(buffer, ctypes.c_uint8), len(buffer), seq))

    def state_load(self, seq: int, buffer: Bytes) -> bool:
        """Replaces the sequence's KV state; False leaves the sequence EMPTY (llama.cpp's behaviour)."""
        data = _as(buffer, ctypes.c_uint8)
        return bool(lib.llama_state_seq_set_data(self._pointer, data, len(buffer), seq))


class Batch(_Handle):
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


class Candidates:
    """The token array samplers work on; one is enough for an engine, it is refilled each time."""

    def __init__(self, n_vocab: int) -> None:
        dtype = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self.data = np.zeros(n_vocab, dtype=dtype)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self.raw = lib.llama_token_data_array()

    def fill(self, logits: Logits) -> None:
        """Takes all tokens with their raw logits."""
        self.data["id"] = self._ids
        self.data["logit"] = logits
        self._reset(len(self.data))

    def fill_one(self, token: int) -> None:
        """Takes a single token, to ask a grammar whether it accepts it."""
        self.data[0] = (token, 1.0, 0.0)
        self._reset(1)

    def _reset(self, size: int) -> None:
        self.raw.data = ctypes.cast(self.data.ctypes.data, lib.llama_token_data_p)
        self.raw.size, self.raw.selected, self.raw.sorted = size, -1, False

    def selected(self) -> tuple[int, float]:
        """Token and logit that the last sampler chose."""
        chosen = self.raw.data[self.raw.selected]
        return int(chosen.id), float(chosen.logit)

    def first_logit(self) -> float:
        return float(self.raw.data[0].logit)


class SamplerChain(_Handle):
    """A chain of llama.cpp samplers, in the order they were added."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._pointer = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def close(self) -> None:
        if self._pointer is not None:
            lib.llama_sampler_free(self._pointer)
            self._pointer = None

    def add(self, name: str, *args: Any) -> Self:
        """Appends `llama_sampler_init_<name>(*args)`."""
        lib.llama_sampler_chain_add(self._pointer, getattr(lib, f"llama_sampler_init_{name}")(*args))
        return self

    def add_logit_bias(self, bias: dict[int, float]) -> Self:
        """Adds a constant to some tokens' logits."""
        array = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(t, b) for t, b in bias.items()))
        return self.add("logit_bias", self._vocab.n_tokens, len(bias), array)

    def add_dry(
        self, multiplier: float, base: float, allowed: int, last_n: int, breakers: Sequence[str]
    ) -> Self:
        """The DRY repetition penalty; `breakers` are strings over which no repetition is counted."""
        words = (ctypes.c_char_p * len(breakers))(*(b.encode() for b in breakers))
        return self.add("dry", self._vocab.pointer, multiplier, base, allowed, last_n, words, len(breakers))

    def apply(self, candidates: Candidates) -> None:
        lib.llama_sampler_apply(self._pointer, ctypes.byref(candidates.raw))

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._pointer, token)


class Grammar(_Handle):
    """A GBNF grammar and how far the output has come in it."""

    def __init__(self, vocab: Vocab, gbnf: str) -> None:
        """Raises `BindingError` with llama.cpp's parse error."""
        _log.recent.clear()
        self._pointer = lib.llama_sampler_init_grammar(vocab.pointer, gbnf.encode(), b"root")
        if not self._pointer:
            raise BindingError(f"not a valid GBNF grammar: {' '.join(_log.recent) or 'no root rule'}")

    def close(self) -> None:
        if self._pointer is not None:
            lib.llama_sampler_free(self._pointer)
            self._pointer = None

    def apply(self, candidates: Candidates) -> None:
        """Sets the logits of tokens that the grammar forbids to -inf."""
        lib.llama_sampler_apply(self._pointer, ctypes.byref(candidates.raw))

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._pointer, token)


def schema_to_gbnf(schema: str) -> str:
    """The GBNF of a JSON schema given as JSON text. Raises `BindingError` where it is not supported."""
    try:
        return str(llama_grammar.json_schema_to_gbnf(schema))
    except Exception as error:  # the converter raises whatever its recursion meets
        raise BindingError(f"schema cannot be turned into a grammar: {error!r}") from error


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


def _as(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
