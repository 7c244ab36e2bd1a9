"""A second process takes VRAM until it is critical; the server gives some back, and grows afterwards.

example:
  python benchmarks/gpu_elastic.py --model model.gguf --ctx 65536
  python benchmarks/gpu_elastic.py --model demo --ctx 8192 --gpu-layers 0 --simulate

With `--simulate` nobody takes anything: readings are simulated, so that it runs without a GPU. Requests are
sent all the while, and none may fail.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from side_by_side import ServerError, free_port, server

from astraea_local.bench.replay import ReplayError, complete, open_client
from astraea_local.frame import StateFrame

_MIB = 1 << 20
_MARGIN = 0.01
_SHRINK_S = 60.0
_GROW_S = 120.0
_CALM_S = 5.0
_HOLDER = Path(__file__).with_name("gpu_memory.py")

Take = Callable[[StateFrame, httpx.AsyncClient], Any]
"""Makes VRAM critical for as long as the context lasts that it returns."""


async def fetch_frame(url: str) -> StateFrame:
    """The state of the server with that base URL (`.../v1`)."""
    async with httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
        response = await client.get(f"{url.removesuffix('/v1')}/astraea/v1/state")
        return StateFrame.model_validate_json(response.raise_for_status().content)


def memory_settings(*, simulate: bool) -> str:
    """The profile's `[memory]` section: quick readings, a short calm."""
    return f"[memory]\npoll_ms = 100\ncalm_s = {_CALM_S}\ndebug_pressure = {str(simulate).lower()}\n"


async def measure(url: str, take: Take) -> dict[str, Any]:
    """What happened to context and VRAM; sizes in cells and MiB, times in seconds.

    `skipped` says why nothing could be measured. Raises `ReplayError` when a request failed, `ServerError`
    when the context did not follow the pressure in time.
    """
    async with open_client(url) as client, httpx.AsyncClient(timeout=30.0, trust_env=False) as http:
        before = await fetch_frame(url)
        asking = asyncio.create_task(_ask_on(client))
        try:
            async with take(before, http) as taken:
                small, shrink_s = await _wait(
                    url, lambda f: f.server.context < before.server.context, _SHRINK_S
                )
            large, grow_s = await _wait(
                url, lambda f: f.server.context == before.server.context, _GROW_S + _CALM_S
            )
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
    return {
        "taken_mib": taken // _MIB,
        "cells": [before.server.context, small.server.context, large.server.context],
        "slots": [before.server.slots, small.server.slots, large.server.slots],
        "ours_mib": [_mib(frame.memory.vram_ours) for frame in (before, small, large)],
        "others_mib": [_mib(frame.memory.vram_others) for frame in (before, small, large)],
        "shrunk_after_s": shrink_s,
        "grown_after_s": grow_s,
        "rebuilds": large.kv.rebuilds,
        "failed": large.totals.segments_failed,
    }


def real(gpu: int) -> Take:
    """Another process takes real VRAM of that GPU, through torch."""

    @asynccontextmanager
    async def take(frame: StateFrame, _http: httpx.AsyncClient) -> AsyncIterator[int]:
        size = missing(frame)
        command = [sys.executable, str(_HOLDER), "--gpu", str(gpu), "--hold", str(size)]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            assert process.stdout is not None
            if not (await process.stdout.readline()).startswith(b"held"):
                raise ServerError("the process that takes VRAM did not get it")
            yield size
        finally:
            await process.communicate()

    return take


def simulated(url: str) -> Take:
    """The server is told that others hold VRAM: half of a GPU on which the server fills the rest."""
    address = f"{url.removesuffix('/v1')}/astraea/v1/debug/pressure"

    @asynccontextmanager
    async def take(frame: StateFrame, http: httpx.AsyncClient) -> AsyncIterator[int]:
        ours = frame.memory.weights_bytes + frame.memory.context_bytes
        if not ours:
            raise ServerError("the server does not say how much memory its weights and context take")
        total = 2 * ours
        others = int((frame.memory.watermarks["critical"] + _MARGIN) * total) - ours
        (await http.post(address, json={"vram_total": total, "vram_others": others})).raise_for_status()
        try:
            yield others
        finally:
            answer = await http.post(address, json={"vram_total": total, "vram_others": 0})
            answer.raise_for_status()

    return take


def missing(frame: StateFrame) -> int:
    """Bytes that another process has to take until VRAM is critical. Raises `ServerError`."""
    total, free = frame.memory.vram_total, frame.memory.vram_free
    if total is None or free is None:
        raise ServerError("the server reports no VRAM")
    return max(_MIB, int((frame.memory.watermarks["critical"] + _MARGIN) * total) - (total - free))


async def _ask_on(client: httpx.AsyncClient) -> None:
    """One request after the other; a failed one is raised."""
    for number in range(1_000_000):
        await complete(client, [{"role": "user", "content": f"Say the number {number}."}], 16)


async def _wait(url: str, done: Callable[[StateFrame], bool], limit_s: float) -> tuple[StateFrame, float]:
    started = time.monotonic()
    while True:
        frame = await fetch_frame(url)
        elapsed = time.monotonic() - started
        if frame.status == "ready" and done(frame):
            # VRAM is read every 0.1 s: the next frames know what the new context takes.
            await asyncio.sleep(1.0)
            return await fetch_frame(url), elapsed
        if elapsed > limit_s:
            state = (
                f"{frame.server.context} cells, pressure {frame.memory.pressure}, {frame.status}, "
                f"as of {time.time() - frame.at:.0f} s ago"
            )
            raise ServerError(f"the context did not follow the pressure within {limit_s:.0f} s: {state}")
        await asyncio.sleep(0.2)


def _mib(size: int | None) -> int | None:
    return None if size is None else size // _MIB


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", default="demo", help="what `serve --model` takes (default: %(default)s)")
    add("--gpu", type=int, default=0, help="index of the GPU (default: %(default)s)")
    add("--gpu-layers", type=int, default=-1, help="default: %(default)s")
    add("--ctx", type=int, default=32768, help="KV cells in total (default: %(default)s)")
    add("--slots", type=int, default=4, help="default: %(default)s")
    add("--layout", default="auto", choices=("auto", "per_slot", "unified"), help="default: %(default)s")
    add("--simulate", action="store_true", help="simulated readings instead of a process that takes VRAM")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what happened as JSON; returns 1 when the context did not follow, or a request failed."""
    args = _parser().parse_args(argv)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "elastic.toml"
        profile.write_text(
            f"[model]\nsource = {json.dumps(args.model)}\n"
            f"gpu_layers = {args.gpu_layers}\nmain_gpu = {args.gpu}\n"
            f'[context]\nsize = {args.ctx}\nslots = {args.slots}\n[kv]\nlayout = "{args.layout}"\n'
            f"{memory_settings(simulate=args.simulate)}",
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "astraea_local", "serve", "--profile", str(profile)]
        try:
            with server([*command, "--no-tui", "--port", str(port)], port) as url:
                report = asyncio.run(measure(url, simulated(url) if args.simulate else real(args.gpu)))
        except (ServerError, ReplayError, httpx.HTTPError) as error:
            sys.stderr.write(f"gpu_elastic: {error}\n")
            return 1
    print(json.dumps(report, indent=1))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
