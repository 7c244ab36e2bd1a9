"""Random-weight GGUF models: the shape and speed of a real model without its download.

They need the `bench` extra (package `gguf`). What such a model says is noise, but its logits are finite,
the same seed writes the same file, and llama.cpp treats it like any other model of its architecture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

ShapeName = Literal["8b", "tiny", "tiny-swa", "tiny-recurrent", "tiny-hybrid"]
Quant = Literal["q8_0", "q4_0"]

_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
# Bytes of a block of 32 weights, and the standard deviation of its uniformly random integers.
_BLOCKS = {"q8_0": (34, 73.9), "q4_0": (18, 4.61)}
_GGML_TYPES = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0}
_FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama_ftype
_NORMAL, _UNUSED, _CONTROL, _BYTE = 1, 5, 3, 6  # token types


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; `window` is the attention window of SWA layers, `state` that of mamba layers."""

    arch: str
    """`llama` and others with its tensors, `gemma2`, `mamba` or `jamba`."""
    layers: int
    width: int
    ff: int = 0
    heads: int = 0
    kv_heads: int = 0
    window: int = 0
    state: int = 0
    context: int = 32768

    def has_attention(self, layer: int) -> bool:
        """Whether that layer attends; the others are recurrent. A hybrid starts with a recurrent one."""
        return self.heads > 0 and (self.arch != "jamba" or layer % 2 == 1)


SHAPES: dict[ShapeName, Shape] = {
    "8b": Shape("llama", 32, 4096, ff=14336, heads=32, kv_heads=8, context=131072),
    "tiny": Shape("llama", 2, 64, ff=128, heads=2, kv_heads=1),
    "tiny-swa": Shape("gemma2", 2, 64, ff=128, heads=2, kv_heads=1, window=64),
    "tiny-recurrent": Shape("mamba", 2, 64, state=16),
    "tiny-hybrid": Shape("jamba", 2, 64, ff=128, heads=2, kv_heads=1, state=16),
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Name without `.weight`, numpy shape, and what to fill it with: a constant, or random blocks."""

    name: str
    shape: tuple[int, ...]
    constant: float | None = None
    dense: bool = False
    """Random F32 instead of blocks, for rows that are no multiple of 32."""


def write(
    path: Path,
    shape: ShapeName = "tiny",
    *,
    seed: int = 0,
    quant: Quant = "q8_0",
    tokenizer: Path | None = None,
    context: int | None = None,
    pooling: int | None = None,
) -> Path:
    """Writes a model to `path` and returns it.

    The tokenizer and chat template are those of the GGUF `tokenizer` (a complete or a vocab-only one; with
    ChatML's template if it has none); with None a token is a byte, beside ChatML's special tokens.
    `context` replaces the training context of the shape, in tokens. With `pooling` it is an embedding model:
    1 = the mean of the outputs, 2 = the first, 3 = the last. Tensors are made one at a time: memory
    stays near the largest of them. Raises `OSError`, and `ValueError` when `tokenizer` is no GGUF with one.
    """
    sizes = SHAPES[shape]
    writer = GGUFWriter(path, sizes.arch)
    vocab = _byte_tokenizer(writer) if tokenizer is None else _copy_tokenizer(writer, tokenizer)
    _metadata(writer, shape, sizes, vocab, quant, context or sizes.context)
    if pooling is not None:
        writer.add_uint32(f"{sizes.arch}.pooling_type", pooling)
    tensors = list(_tensors(sizes, vocab))
    for tensor in tensors:
        _announce(writer, tensor, quant)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, tensor in enumerate(tensors):
            writer.write_tensor_data(_fill(np.random.default_rng((seed, index)), tensor, quant))
    finally:
        writer.close()
    return path


def _metadata(writer: GGUFWriter, name: str, sizes: Shape, vocab: int, quant: Quant, context: int) -> None:
    writer.add_name(f"random {name}")
    writer.add_file_type(_FILE_TYPES[quant])
    writer.add_context_length(context)
    writer.add_embedding_length(sizes.width)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ff)
    writer.add_vocab_size(vocab)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count(sizes.heads)
    if sizes.heads:
        kv_heads = [sizes.kv_heads if sizes.has_attention(i) else 0 for i in range(sizes.layers)]
        writer.add_head_count_kv(kv_heads if sizes.arch == "jamba" else sizes.kv_heads)
        writer.add_rope_dimension_count(sizes.width // sizes.heads)
    if sizes.window:
        writer.add_sliding_window(sizes.window)
    if sizes.state:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * sizes.width)
        writer.add_ssm_state_size(sizes.state)
        writer.add_ssm_time_step_rank(sizes.width // 16)


def _tensors(sizes: Shape, vocab: int) -> Iterator[_Tensor]:
    width = sizes.width
    yield _Tensor("token_embd", (vocab, width))
    for i in range(sizes.layers):
        layer = f"blk.{i}"
        yield _Tensor(f"{layer}.attn_norm", (width,), 1.0)
        yield from _attention(sizes, layer) if sizes.has_attention(i) else _mamba(sizes, layer)
        if sizes.ff:
            yield _Tensor(f"{layer}.ffn_norm", (width,), 1.0)
            yield _Tensor(f"{layer}.ffn_gate", (sizes.ff, width))
            yield _Tensor(f"{layer}.ffn_up", (sizes.ff, width))
            yield _Tensor(f"{layer}.ffn_down", (width, sizes.ff))
        if sizes.arch == "gemma2":
            yield _Tensor(f"{layer}.post_attention_norm", (width,), 1.0)
            yield _Tensor(f"{layer}.post_ffw_norm", (width,), 1.0)
    yield _Tensor("output_norm", (width,), 1.0)
    if sizes.arch != "gemma2":  # its output matrix is always the embedding
        yield _Tensor("output", (vocab, width))


def _attention(sizes: Shape, layer: str) -> Iterator[_Tensor]:
    width = sizes.width
    kv_width = width // sizes.heads * sizes.kv_heads
    yield _Tensor(f"{layer}.attn_q", (width, width))
    yield _Tensor(f"{layer}.attn_k", (kv_width, width))
    yield _Tensor(f"{layer}.attn_v", (kv_width, width))
    yield _Tensor(f"{layer}.attn_output", (width, width))


def _mamba(sizes: Shape, layer: str) -> Iterator[_Tensor]:
    width, inner, rank = sizes.width, 2 * sizes.width, sizes.width // 16
    yield _Tensor(f"{layer}.ssm_in", (2 * inner, width))
    yield _Tensor(f"{layer}.ssm_conv1d", (inner, 4), dense=True)
    yield _Tensor(f"{layer}.ssm_conv1d.bias", (inner,), 0.0)
    yield _Tensor(f"{layer}.ssm_x", (rank + 2 * sizes.state, inner))
    yield _Tensor(f"{layer}.ssm_dt", (inner, rank), dense=True)
    yield _Tensor(f"{layer}.ssm_dt.bias", (inner,), 0.0)
    yield _Tensor(f"{layer}.ssm_a", (inner, sizes.state), -1.0)  # negative: the state decays
    yield _Tensor(f"{layer}.ssm_d", (inner,), 1.0)
    yield _Tensor(f"{layer}.ssm_out", (width, inner))
    if sizes.arch == "jamba":
        yield _Tensor(f"{layer}.ssm_dt_norm", (rank,), 1.0)
        yield _Tensor(f"{layer}.ssm_b_norm", (sizes.state,), 1.0)
        yield _Tensor(f"{layer}.ssm_c_norm", (sizes.state,), 1.0)


def _announce(writer: GGUFWriter, tensor: _Tensor, quant: Quant) -> None:
    bare = tensor.name.endswith((".bias", ".ssm_a", ".ssm_d"))
    name = tensor.name if bare else f"{tensor.name}.weight"
    if tensor.constant is not None or tensor.dense:
        size = 4 * int(np.prod(tensor.shape))
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size)
        return
    rows, columns = tensor.shape
    in_bytes = (rows, columns // 32 * _BLOCKS[quant][0])
    writer.add_tensor_info(
        name, in_bytes, np.dtype(np.uint8), in_bytes[0] * in_bytes[1], raw_dtype=_GGML_TYPES[quant]
    )


def _fill(rng: np.random.Generator, tensor: _Tensor, quant: Quant) -> npt.NDArray[Any]:
    if tensor.constant is not None:
        return np.full(tensor.shape, tensor.constant, dtype=np.float32)
    rows, columns = tensor.shape
    # Keeps the size of what goes through the matrix, so that nothing overflows however many layers follow.
    deviation = columns**-0.5
    if tensor.dense:
        return rng.standard_normal(tensor.shape, dtype=np.float32) * np.float32(deviation)
    block_bytes, integer_deviation = _BLOCKS[quant]
    size = rows * columns // 32 * block_bytes
    words = rng.integers(0, 2**64, size=-(-size // 8), dtype=np.uint64)
    data = words.view(np.uint8)[:size]
    # Every block starts with its scale, a half float.
    data.reshape(-1, block_bytes)[:, :2] = np.array([deviation / integer_deviation], np.float16).view(
        np.uint8
    )
    return data


def _copy_tokenizer(writer: GGUFWriter, source: Path) -> int:
    vocab = 0
    has_template = False
    try:
        reader = GGUFReader(source)
    except ValueError as error:
        raise ValueError(f"{source}: not a GGUF file ({error})") from error
    for key, entry in reader.fields.items():
        if not key.startswith("tokenizer."):
            continue
        value = entry.contents()
        is_array = entry.types[0] is GGUFValueType.ARRAY
        writer.add_key_value(key, value, entry.types[0], entry.types[-1] if is_array else None)
        if key == "tokenizer.ggml.tokens":
            vocab = len(value)
        has_template = has_template or key == "tokenizer.chat_template"
    if not has_template:
        writer.add_chat_template(_CHATML)
    if not vocab:
        raise ValueError(f"{source}: has no tokenizer to copy")
    return vocab


def _byte_tokenizer(writer: GGUFWriter) -> int:
    tokens = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    kinds = [_UNUSED, _CONTROL, _CONTROL, *[_BYTE] * 256, _NORMAL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(_CHATML)
    return len(tokens)
