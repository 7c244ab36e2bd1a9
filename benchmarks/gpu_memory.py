"""What moving, keeping and giving back KV costs, measured on llama.cpp's own calls in this process.

example:
  python benchmarks/gpu_memory.py --model model.gguf
  python benchmarks/gpu_memory.py --model tiny.gguf --gpu-layers 0 --tokens 1024 --idle 0,2048,4096

Bandwidth of saving and restoring a state through plain and through page-locked memory, against a raw copy
of the same bytes; the time of a decode step beside 0 to 100k idle tokens in both layouts; and the memory
that this process holds with a context, without one, and with one half as large. `gpu_check.py` runs it in
a process of its own. Without a GPU everything is measured on the host, and page-locked memory is left out.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from astraea_local.engine.binding import (
    Batch,
    BindingError,
    Bytes,
    Context,
    ContextParams,
    Device,
    Model,
    used_gpus,
)
from astraea_local.engine.nvml import Nvml

_LIVE = 1024
_CHUNK = 4096
_MIB = 1 << 20
_GB = 1e9


def bandwidth(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """GB/s of saving and restoring `--tokens` tokens, by kind of memory, and of raw copies of its bytes."""
    with context(model, args, n_ctx=2 * args.tokens, n_seq=2) as ctx, Batch(args.batch) as batch:
        fill(ctx, batch, 0, args.tokens)
        size = ctx.state_size(0)
        result: dict[str, Any] = {"tokens": args.tokens, "bytes": size}
        torch = cuda_torch()
        for kind in ("plain", "page_locked") if torch else ("plain",):
            buffer = host_memory(size, torch if kind == "page_locked" else None)
            result[kind] = moves(ctx, buffer, args.repeats)
            result[kind] |= raw_copies(buffer, torch, args.repeats)
    return result


def moves(ctx: Context, buffer: Bytes, repeats: int) -> dict[str, float]:
    """GB/s of saving sequence 0 into `buffer` and of restoring it from there into sequence 1."""
    save_s, load_s = [], []
    for _ in range(repeats + 1):
        save_s.append(timed(lambda: ctx.state_save(0, buffer), ctx.synchronize))
        ctx.seq_rm(1)
        load_s.append(timed(lambda: ctx.state_load(1, buffer), ctx.synchronize))
        if ctx.seq_end(1) != ctx.seq_end(0):
            raise BindingError("a saved state was not restored")
    # The first save maps the pages, which a server does once.
    return {"save": rate(len(buffer), save_s[1:]), "restore": rate(len(buffer), load_s[1:])}


def raw_copies(buffer: Bytes, torch: Any, repeats: int) -> dict[str, float]:
    """GB/s between `buffer` and the GPU, or within host memory where there is no CUDA torch."""
    if torch is None:
        other = np.zeros_like(buffer)
        seconds = [timed(lambda: np.copyto(other, buffer)) for _ in range(repeats + 1)]
        return {"host_copy": rate(len(buffer), seconds[1:])}
    host = torch.from_numpy(buffer)
    device = torch.empty(len(buffer), dtype=torch.uint8, device="cuda")
    down = [timed(lambda: host.copy_(device), torch.cuda.synchronize) for _ in range(repeats + 1)]
    up = [timed(lambda: device.copy_(host), torch.cuda.synchronize) for _ in range(repeats + 1)]
    return {"raw_to_host": rate(len(buffer), down[1:]), "raw_to_gpu": rate(len(buffer), up[1:])}


def residency_tax(model: Model, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of one job's decode step beside idle tokens of others, by layout."""
    chunks = [idle // _CHUNK for idle in args.idle]
    rows = []
    for layout in ("per_slot", "unified"):
        n_seq = 1 + max(chunks)
        with (
            context(model, args, n_ctx=n_seq * _CHUNK, n_seq=n_seq, unified=layout == "unified") as ctx,
            Batch(args.batch) as batch,
        ):
            state = one_chunk(ctx, batch) if max(chunks) else None
            resident = 0
            for wanted in chunks:
                while state is not None and resident < wanted:
                    resident += 1
                    # Loaded, not copied: a copy by reference would take no cells in the unified layout.
                    if not ctx.state_load(resident, state):
                        raise BindingError(f"no room for {resident} idle sequences of {_CHUNK} tokens")
                # Computed last, so that it lies behind the idle ones as that of a newcomer would.
                ctx.seq_rm(0)
                fill(ctx, batch, 0, _LIVE)
                step_s = [decode_one(ctx, batch, _LIVE + n) for n in range(args.steps)]
                rows.append(
                    {"layout": layout, "idle": resident * _CHUNK, "step_ms": 1e3 * statistics.median(step_s)}
                )
    return rows


def one_chunk(ctx: Context, batch: Batch) -> Bytes:
    """The state of a sequence of 4,096 tokens, which is then removed."""
    fill(ctx, batch, 0, _CHUNK)
    buffer = np.empty(ctx.state_size(0), dtype=np.uint8)
    ctx.state_save(0, buffer)
    ctx.seq_rm(0)
    return buffer


def given_back(model: Model, args: argparse.Namespace, gpu: Device | None) -> dict[str, Any]:
    """MiB that this process holds with a context full, emptied and freed; then with one half as large."""
    held = holder(gpu)
    cells = max(args.idle) + 2 * _CHUNK
    result: dict[str, Any] = {"measured_by": "rss" if gpu is None else "nvml", "model_mib": held()}
    with Batch(args.batch) as batch:
        for name, size in (("context", cells), ("half_context", cells // 2)):
            with context(model, args, n_ctx=size, n_seq=1, unified=True) as ctx:
                # Host memory counts once it was written to.
                fill(ctx, batch, 0, min(size - 1, model.n_ctx_train, args.tokens))
                result[f"{name}_cells"] = ctx.n_ctx
                result[f"{name}_mib"] = held()
                ctx.clear()
                result[f"{name}_emptied_mib"] = held()
            result[f"{name}_freed_mib"] = held()
    return result


def holder(gpu: Device | None) -> Callable[[], float]:
    """A function that says how many MiB this process holds: of the GPU by NVML, or resident on the host."""
    if gpu is None:
        return lambda: psutil.Process().memory_info().rss / _MIB
    nvml = Nvml()

    def held() -> float:
        reading = nvml.read(gpu.pci, time.monotonic())
        if reading is None or reading.used is None:
            raise BindingError(
                f"NVML does not know the memory of {gpu.description} ({gpu.pci or 'no bus id'})"
            )
        # In a container the driver may not list this process; on a GPU of one's own the sum does as well.
        return (reading.used if reading.ours is None else reading.ours) / _MIB

    return held


@contextmanager
def context(
    model: Model, args: argparse.Namespace, *, n_ctx: int, n_seq: int, unified: bool = False
) -> Iterator[Context]:
    """A context of that size with the settings of the command line."""
    params = ContextParams(
        n_ctx=n_ctx,
        n_seq=n_seq,
        n_batch=args.batch,
        n_ubatch=min(args.batch, 512),
        unified=unified,
        type_k=args.kv_type,
        type_v=args.kv_type,
        threads=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
    )
    with Context(model, params) as made:
        yield made


def fill(ctx: Context, batch: Batch, seq: int, tokens: int) -> None:
    """Computes that many tokens of noise into the empty sequence `seq`."""
    noise = np.random.default_rng(seq).integers(10, 200, tokens, dtype=np.int32)
    for start in range(0, tokens, batch.capacity):
        batch.clear()
        batch.add(noise[start : start + batch.capacity], start, seq, last_logits=True)
        if code := ctx.decode(batch):
            raise BindingError(f"llama_decode returned {code} after {start} of {tokens} tokens")
    ctx.synchronize()


def decode_one(ctx: Context, batch: Batch, position: int) -> float:
    """Seconds of a step with one token."""
    batch.clear()
    batch.add(np.array([11], dtype=np.int32), position, 0, last_logits=True)
    return timed(lambda: ctx.decode(batch), ctx.synchronize)


def timed(action: Callable[[], object], finish: Callable[[], object] = lambda: None) -> float:
    """Seconds that `action` takes until `finish` has returned."""
    finish()
    started = time.perf_counter()
    action()
    finish()
    return time.perf_counter() - started


def rate(size: int, seconds: Sequence[float]) -> float:
    """GB/s at the median of those times."""
    return size / statistics.median(seconds) / _GB


def cuda_torch() -> Any:
    """The module torch, where it is there and sees a GPU."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def host_memory(size: int, torch: Any) -> Bytes:
    """A buffer; page-locked when `torch` is given."""
    if torch is None:
        return np.zeros(size, dtype=np.uint8)
    array: Bytes = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return array


def hold(gpu: int, size: int) -> int:
    """Takes that many bytes of a GPU, says `held`, and keeps them until standard input ends."""
    torch = cuda_torch()
    if torch is None:
        sys.stderr.write("taking VRAM needs torch with CUDA\n")
        return 1
    taken = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{gpu}")
    torch.cuda.synchronize()
    print("held", taken.numel(), flush=True)
    sys.stdin.read()
    return 0


def _numbers(text: str) -> list[int]:
    return sorted(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help="a GGUF file")
    add("--gpu", type=int, default=0, help="index of the GPU (default: %(default)s)")
    add("--gpu-layers", type=int, default=-1, help="-1 = all, 0 = stay on the host (default: %(default)s)")
    add("--tokens", type=int, default=8192, help="of the state that is moved (default: %(default)s)")
    add("--idle", type=_numbers, default="0,8192,24576,49152,98304", help="default: %(default)s")
    add("--steps", type=int, default=32, help="decode steps of each measurement (default: %(default)s)")
    add("--repeats", type=int, default=9, help="of each copy (default: %(default)s)")
    add("--batch", type=int, default=2048, help="default: %(default)s")
    add("--kv-type", default="f16", help="default: %(default)s")
    add("--hold", type=int, metavar="BYTES", help="only take so much VRAM until standard input ends")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the measurements as one line of JSON; returns 1 when one failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.hold is not None:
        return hold(args.gpu, args.hold)
    if args.model is None:
        parser.error("--model is missing")
    try:
        with Model(args.model, gpu_layers=args.gpu_layers, main_gpu=args.gpu) as model:
            gpus = used_gpus(args.gpu_layers, "none", args.gpu)
            gpu = gpus[0] if gpus else None
            report = {
                "device": "host" if gpu is None else gpu.description,
                # First, while the allocator has nothing of its own that it could reuse.
                "given_back": given_back(model, args, gpu),
                "bandwidth": bandwidth(model, args),
                "residency": residency_tax(model, args),
            }
    except BindingError as error:
        sys.stderr.write(f"gpu_memory: {error}\n")
        return 1
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
