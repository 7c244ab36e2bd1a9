"""What the server does on an NVIDIA GPU, with a random 8B model: no network and no download.

example:
  python benchmarks/gpu_check.py --json gpu.json
  python benchmarks/gpu_check.py --model model.gguf --slots 8 --ctx 65536

Reports VRAM by NVML, the layers that were offloaded, prefill and decode speed with 1, 4 and 8 streams
over HTTP, the step overhead, and the job completion times of coding agents. Then what KV costs: park and
restore bandwidth, the step beside idle tokens (`gpu_memory.py`), and whether the server gives VRAM back
to a process that needs it (`gpu_elastic.py`). Without an NVIDIA GPU, or
with a llama.cpp that was built without CUDA, it says so in one line and exits with 0.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pynvml
from gpu_elastic import fetch_frame, measure, memory_settings, real
from side_by_side import ServerError, free_port, server

from astraea_local.bench.coding import pseudo_code, workload
from astraea_local.bench.random_model import SHAPES, write
from astraea_local.bench.replay import ReplayError, Segment, complete, open_client, run
from astraea_local.model_source import ModelSourceError, resolve

_STREAMS = (1, 4, 8)
_MIB = 1024**2
# Asked in a process of its own: a CUDA context here would count as VRAM of the server.
_ASK_BUILD = "from astraea_local.engine.binding import build_info; print(build_info().gpu_offload)"


class NothingToMeasureError(Exception):
    """This machine has no GPU that llama.cpp can use; the message says what is missing."""


def check(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures everything; sizes in MiB, times in seconds, speeds in tokens per second.

    `folder` takes the model and the profile. Raises `NothingToMeasureError`, `ServerError`, `ReplayError`,
    `ModelSourceError`.
    """
    used_mib, gpu = _vram(args.gpu)
    _require_gpu_build()
    report: dict[str, Any] = {"gpu": gpu, "vram_before_mib": used_mib()}
    started = time.perf_counter()
    model = args.model or write(
        folder / "random.gguf", args.shape, quant=args.quant, tokenizer=resolve(args.tokenizer)
    )
    report["model"] = {"bytes": model.stat().st_size, "made_in_s": time.perf_counter() - started}
    profile = folder / "gpu-check.toml"
    profile.write_text(_profile(model, args), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "astraea_local", "serve", "--profile", str(profile), "--port", str(port)]
    started = time.perf_counter()
    with server([*command, "--no-tui"], port) as url:
        report["start_s"] = time.perf_counter() - started
        report["vram_loaded_mib"] = used_mib()
        asyncio.run(_measure(url, args, report))
        report["vram_after_load_mib"] = used_mib()
    report["vram_stopped_mib"] = used_mib()
    report["memory"] = _memory(model, args)
    report["elastic"] = _elastic(profile, args)
    return report


def _memory(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`gpu_memory.py` on the same model, in a process of its own so that it returns its VRAM."""
    script = Path(__file__).with_name("gpu_memory.py")
    options = ["--gpu", str(args.gpu), "--kv-type", args.kv_type, "--batch", str(args.batch)]
    command = [sys.executable, str(script), "--model", str(model), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"failed": ended.stderr.strip().splitlines()[-1:]}
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def _elastic(profile: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the server does when another process takes VRAM; needs a torch with CUDA for that process."""
    with profile.open("a", encoding="utf-8") as file:
        file.write(memory_settings(simulate=False))
    port = free_port()
    command = [sys.executable, "-m", "astraea_local", "serve", "--profile", str(profile), "--port", str(port)]
    try:
        with server([*command, "--no-tui"], port) as url:
            return asyncio.run(measure(url, real(args.gpu)))
    except (ServerError, ReplayError, httpx.HTTPError) as error:
        return {"failed": str(error)}


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = ["| figure | value |", "|---|---|"]
    for name, value in report.items():
        if name != "speed":
            lines += [f"| {key} | {shown} |" for key, shown in _figures(name, value)]
    lines += ["", "| streams | prefill tokens/s | decode tokens/s | of one |", "|---|---|---|---|"]
    for row in report["speed"]:
        streams, prefill, decode = row["streams"], row["prefill"], row["decode"]
        lines.append(f"| {streams} | {prefill:.1f} | {decode:.1f} | {decode / streams:.1f} |")
    return "\n".join(lines)


def _figures(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every figure below `value` with the words that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _figures(f"{name} {key}", inner)
    elif isinstance(value, list) and any(isinstance(row, dict) for row in value):
        for row in value:
            words = " ".join(str(inner) for inner in row.values() if not isinstance(inner, float))
            for key, inner in row.items():
                if isinstance(inner, float):
                    yield from _figures(f"{name} {words} {key}", inner)
    else:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _vram(index: int) -> tuple[Callable[[], int], str]:
    """A function that says how many MiB of that GPU are in use, and the GPU's name."""
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(device)
    except pynvml.NVMLError as error:
        raise NothingToMeasureError(f"no NVIDIA GPU {index} ({error})") from error
    return lambda: pynvml.nvmlDeviceGetMemoryInfo(device).used // _MIB, str(name)


def _require_gpu_build() -> None:
    asked = subprocess.run([sys.executable, "-c", _ASK_BUILD], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ServerError(
            f"llama.cpp does not load: {asked.stderr.strip().splitlines()[-1]} "
            "(CUDA libraries are searched for in LD_LIBRARY_PATH)"
        )
    if asked.stdout.split()[-1:] != ["True"]:
        raise NothingToMeasureError(
            "this llama-cpp-python was built without CUDA; install it with "
            'CMAKE_ARGS="-DGGML_CUDA=on" pip install --no-binary llama-cpp-python --force-reinstall '
            "llama-cpp-python==0.3.36"
        )


def _profile(model: Path, args: argparse.Namespace) -> str:
    return f"""description = "Everything on the GPU"
[model]
source = {json.dumps(str(model.resolve()))}
gpu_layers = -1
main_gpu = {args.gpu}
[context]
size = {args.ctx}
slots = {args.slots}
batch = {args.batch}
ubatch = {min(args.batch, args.ubatch)}
[kv]
type_k = "{args.kv_type}"
type_v = "{args.kv_type}"
[scheduler]
policy = "{args.policy}"
"""


async def _measure(url: str, args: argparse.Namespace, report: dict[str, Any]) -> None:
    async with open_client(url) as client:
        await complete(client, _prompt("warm up", 8), 8)
        speed = []
        for streams in _STREAMS:
            if streams > args.slots:
                continue
            speed.append(
                {
                    "streams": streams,
                    "prefill": await _prefill_speed(client, streams, args.prefill_tokens),
                    "decode": await _decode_speed(client, streams, args.decode_tokens),
                }
            )
            if streams == 1:
                step_s = (await fetch_frame(url)).speed.decode_step_s
                # What one token costs the client beyond the step that made it.
                report["step"] = {"decode_step_s": step_s, "overhead_s": 1 / speed[0]["decode"] - step_s}
        report["speed"] = speed
    agents = workload(args.seed, agents=args.agents, rate=args.rate, context_limit=args.context_limit)
    report["agents"] = (await run(url, agents)).summary()
    frame = await fetch_frame(url)
    report["server"] = {
        "offloaded": frame.server.offloaded,
        "layout": frame.server.layout,
        "policy": frame.server.policy,
        "job_context": frame.server.job_context,
        "status": frame.status,
        "restarts": frame.restarts,
    }


def _prompt(name: str, tokens: int) -> list[dict[str, str]]:
    """A prompt of about that many tokens that shares no prefix with those of other names."""
    return [{"role": "user", "content": pseudo_code(random.Random(name), tokens, first=name)}]


async def _at_once(
    client: httpx.AsyncClient, prompts: Sequence[list[dict[str, str]]], max_tokens: int
) -> tuple[list[Segment], float]:
    started = time.perf_counter()
    answers = await asyncio.gather(*(complete(client, prompt, max_tokens) for prompt in prompts))
    return [segment for _text, segment in answers], time.perf_counter() - started


async def _prefill_speed(client: httpx.AsyncClient, streams: int, tokens: int) -> float:
    """Uncached prompt tokens per second over all streams; one token each is decoded."""
    prompts = [_prompt(f"{index} prefill {streams}", tokens) for index in range(streams)]
    segments, seconds = await _at_once(client, prompts, 1)
    return sum(segment.prompt_tokens - segment.cached_tokens for segment in segments) / seconds


async def _decode_speed(client: httpx.AsyncClient, streams: int, tokens: int) -> float:
    """Decoded tokens per second over all streams, from the first text of any to the end of all."""
    prompts = [_prompt(f"{index} decode {streams}", 16) for index in range(streams)]
    segments, seconds = await _at_once(client, prompts, tokens)
    decoding_s = seconds - min(segment.ttft_s for segment in segments)
    if decoding_s <= 0:
        raise ReplayError("the replies had no text, so their speed is unknown")
    return sum(segment.output_tokens - 1 for segment in segments) / decoding_s


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help="a GGUF file instead of a random model")
    add("--shape", choices=tuple(SHAPES), default="8b", help="of the random model (default: %(default)s)")
    add("--quant", choices=("q8_0", "q4_0"), default="q8_0", help="default: %(default)s")
    add("--tokenizer", default="demo", metavar="FILE", help="GGUF whose tokenizer is used (default: demo)")
    add("--gpu", type=int, default=0, help="index of the GPU (default: %(default)s)")
    add("--ctx", type=int, default=32768, help="KV cells in total (default: %(default)s)")
    add("--slots", type=int, default=8, help="default: %(default)s")
    add("--batch", type=int, default=2048, help="default: %(default)s")
    add("--ubatch", type=int, default=512, help="default: %(default)s")
    add("--kv-type", default="f16", help="element type of the KV cache (default: %(default)s)")
    add("--policy", default="astraea", help="default: %(default)s")
    add("--agents", type=int, default=12, help="default: %(default)s")
    add("--rate", type=float, default=1.0, help="arrivals per second (default: %(default)s)")
    add("--context-limit", type=int, default=2000, help="tokens of an agent (default: %(default)s)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--prefill-tokens", type=int, default=2048, help="per stream (default: %(default)s)")
    add("--decode-tokens", type=int, default=128, help="per stream (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the report there as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report as JSON and Markdown; returns 0, or 1 when a measurement failed."""
    args = _parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = check(args, Path(folder))
    except NothingToMeasureError as error:
        print(f"nothing to measure: {error}")
        return 0
    except (ServerError, ReplayError, ModelSourceError, httpx.HTTPError, OSError, ValueError) as error:
        sys.stderr.write(f"gpu_check: {error}\n")
        return 1
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    print(json.dumps(report, indent=1))
    print(markdown(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = report["agents"]["errors"] or "failed" in report["memory"] or report["elastic"]["failed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
