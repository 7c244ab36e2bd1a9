"""Hundreds of agents on one server while it is resized, pressed, crashed and cancelled: does anything leak?

example:
  python benchmarks/soak.py --jobs 300 --seed 1

A random-weight model makes calls take milliseconds. Clients hang up in the middle, users park, drop, pin and
cancel, memory runs short, the context changes, and the engine is killed. Afterwards slots, queues, buffers,
files, threads, descriptors and processes have to be what they were, and nobody may have got a wrong answer.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from side_by_side import ServerError, free_port, server

from astraea_local.bench import random_model
from astraea_local.frame import StateFrame

_SETTLE_S = 60.0
# Of memory, descriptors and threads: what a process may have more at the end than after its warming up.
_GROWTH_MIB = 24
_GROWTH_DESCRIPTORS = 8
# Worker threads of the pools are made when they are first needed, and stay.
_GROWTH_THREADS = 8
_PROFILE = """
[model]
source = "{model}"
gpu_layers = 0
threads = 1
[context]
size = 4096
slots = 4
[kv]
layout = "{layout}"
[retention]
disk_path = "{folder}/kv"
ram_mib = 8
disk_mib = 8
write_behind_s = 0.2
min_tokens = 16
[memory]
debug_pressure = true
poll_ms = 100
calm_s = 1.0
[prediction]
history = false
[server]
job_idle_s = 5.0
"""


class Soak:
    """The agents, whoever disturbs them, and what came of both."""

    def __init__(self, http: httpx.AsyncClient, args: argparse.Namespace) -> None:
        self.http = http
        self.random = random.Random(args.seed)
        self.jobs, self.at_once, self.crashes = args.jobs, args.at_once, args.crashes
        self.counts: dict[str, int] = dict.fromkeys(
            ("calls", "hung_up", "cancelled", "interrupted", "crashes", "actions"), 0
        )
        self.faults: list[str] = []
        self.names: list[str] = []
        self._cancelled: set[str] = set()
        self._room = asyncio.Semaphore(args.at_once)

    async def run(self, first: int, count: int) -> None:
        """Plays so many jobs, and disturbs them until the last has ended."""
        disturbing = asyncio.create_task(self._disturb())
        try:
            await asyncio.gather(*(self._job(number) for number in range(first, first + count)))
        finally:
            disturbing.cancel()
            await asyncio.gather(disturbing, return_exceptions=True)
        await self._calm()

    async def frame(self) -> StateFrame:
        """The present StateFrame."""
        answer = await self.http.get("/astraea/v1/state")
        return StateFrame.model_validate_json(answer.raise_for_status().content)

    async def settle(self) -> StateFrame:
        """The frame in which nothing runs, waits or moves any more."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            frame = await self.frame()
            ready = frame.status == "ready" and not frame.queue and frame.server.context == 4096
            if ready and all(slot.segment is None for slot in frame.slots):
                return frame
            if time.monotonic() > deadline:
                self.faults.append(f"did not come to rest: {frame.status}, {len(frame.queue)} queued")
                return frame
            await asyncio.sleep(0.2)

    async def crash(self) -> None:
        """Kills the engine; requests are run again in the next one."""
        frame = await self.frame()
        with suppress(ProcessLookupError):
            os.kill(frame.server.pid, signal.SIGKILL)
        self.counts["crashes"] += 1

    async def _job(self, number: int) -> None:
        async with self._room:
            name, rng = f"soak-{number}", random.Random(number)
            self.names.append(name)
            messages = [{"role": "user", "content": f"System {number % 7}. " + "word " * rng.randint(5, 120)}]
            for _ in range(rng.randint(1, 5)):
                if not await self._call(name, messages, rng):
                    return
                messages.append({"role": "user", "content": "more " * rng.randint(1, 20)})
                await asyncio.sleep(rng.expovariate(20))

    async def _call(self, name: str, messages: list[dict[str, str]], rng: random.Random) -> bool:
        self.counts["calls"] += 1
        wanted = rng.randint(1, 24)
        body = {"messages": messages, "max_tokens": wanted, "ignore_eos": True, "stream": True}
        headers = {"X-Astraea-Job": name}
        said, pieces = "", 0
        hang_up = rng.random() < 0.05
        try:
            async with self.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    return self._refused(name, (await answer.aread()).decode())
                async for line in answer.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event and said and event["error"]["code"] == "engine_restarted":
                        # What was sampled and sent already cannot be sampled again.
                        self.counts["interrupted"] += 1
                        return False
                    if "error" in event:
                        return self._refused(name, str(event["error"]))
                    said += event["choices"][0]["delta"].get("content") or "" if event["choices"] else ""
                    pieces += 1
                    if hang_up and pieces > 3:
                        self.counts["hung_up"] += 1
                        return False
        except httpx.HTTPError as error:
            self.faults.append(f"{name}: {error!r}")
            return False
        messages.append({"role": "assistant", "content": said})
        return True

    def _refused(self, name: str, text: str) -> bool:
        if name in self._cancelled and "cancel" in text:
            self.counts["cancelled"] += 1
        else:
            self.faults.append(f"{name}: {text[:200]}")
        return False

    async def _disturb(self) -> None:
        """Something happens ten times a second."""
        while True:
            await asyncio.sleep(self.random.expovariate(10))
            name = self.random.choice(self.names[-self.at_once :]) if self.names else "nobody"
            action = self.random.choice(("park", "drop", "pin", "unpin", "cancel", "pressure", "resize"))
            self.counts["actions"] += 1
            match action:
                case "cancel":
                    if self.random.random() < 0.3:
                        self._cancelled.add(name)
                        await self._post(f"jobs/{name}/cancel")
                case "pressure":
                    free = self.random.choice((1 << 20, 1 << 29, 1 << 29))
                    await self._post(
                        "debug/pressure", vram_total=1 << 30, vram_free=free, vram_others=1 << 28
                    )
                case "resize":
                    if self.random.random() < 0.2:
                        await self._post("context", size=self.random.choice((2048, 4096)))
                case _:
                    await self._post(f"jobs/{name}/{action}")

    async def _calm(self) -> None:
        await self._post("debug/pressure", vram_total=1 << 30, vram_free=1 << 29, vram_others=1 << 28)
        await self._post("context", size=4096, slots=4)

    async def _post(self, what: str, **body: int) -> None:
        # Refusals are part of the game: a job that runs cannot be parked, an engine that starts answers 503.
        answer = await self.http.post(f"/astraea/v1/{what}", json=body or None)
        if answer.status_code >= 500 and answer.status_code != 503:
            self.faults.append(f"{what}: {answer.status_code} {answer.text[:200]}")


def measure(frame: StateFrame) -> dict[str, Any]:
    """What the server's processes hold."""
    engine = psutil.Process(frame.server.pid)
    front = engine.parent()
    assert front is not None
    return {
        "processes": 1 + len(front.children(recursive=True)),
        **{
            f"{name}_{what}": value
            for name, process in (("front", front), ("engine", engine))
            for what, value in (
                ("mib", process.memory_info().rss >> 20),
                ("threads", process.num_threads()),
                ("descriptors", process.num_fds()),
            )
        },
    }


async def play(url: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; what was found wrong is under `faults`."""
    root = url.removesuffix("/v1")
    limits = httpx.Limits(max_connections=args.at_once + 4)
    async with httpx.AsyncClient(base_url=root, timeout=120.0, trust_env=False, limits=limits) as http:
        soak = Soak(http, args)
        share = args.jobs // (args.crashes + 2)
        for turn in range(args.crashes):
            sys.stderr.write(f"{turn * share} of {args.jobs} jobs; {len(soak.faults)} faults\n")
            crash = asyncio.create_task(_later(soak.crash(), 1.0))
            await soak.run(turn * share, share)
            await crash
        # The last engine lives through the rest: what it holds after its first jobs is the measure.
        await soak.settle()
        await soak.run(args.crashes * share, share)
        before = measure(await soak.settle())
        sys.stderr.write(f"{(args.crashes + 1) * share} of {args.jobs} jobs; {len(soak.faults)} faults\n")
        await soak.run((args.crashes + 1) * share, args.jobs - (args.crashes + 1) * share)
        frame = await soak.settle()
        after = measure(frame)
        for name in soak.names:
            await http.post(f"/astraea/v1/jobs/{name}/drop")
        # Connections of clients that hung up end, and jobs are forgotten.
        await asyncio.sleep(7.0)
        last = await soak.settle()
        faults = [*soak.faults, *_leaks(before, after, last, folder)]
    return {**soak.counts, "restarts": frame.restarts, "before": before, "after": after, "faults": faults}


async def _later(doing: Any, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await doing


def _leaks(before: dict[str, Any], after: dict[str, Any], last: StateFrame, folder: Path) -> list[str]:
    found = []
    allowances = {"mib": _GROWTH_MIB, "descriptors": _GROWTH_DESCRIPTORS, "threads": _GROWTH_THREADS}
    for name, value in after.items():
        kind = name.rpartition("_")[2]
        allowed = allowances.get(kind, 0)
        if value > before[name] + allowed:
            found.append(f"{name} grew from {before[name]} to {value}")
    if last.jobs:
        found.append(f"{len(last.jobs)} jobs are still listed")
    if any(slot.segment is not None for slot in last.slots):
        found.append("a slot is still taken")
    if last.kv.restore_failures:
        found.append(f"{last.kv.restore_failures} restores failed")
    if last.kv.ram_bytes > last.kv.ram_budget_bytes or last.kv.disk_bytes > last.kv.disk_budget_bytes:
        found.append("a budget is exceeded")
    files = [file for file in (folder / "kv").rglob("*") if file.is_file()]
    if stray := [file.name for file in files if file.suffix not in (".kv", ".json")]:
        found.append(f"stray files: {stray[:5]}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--jobs", type=int, default=300, help="default: %(default)s")
    add("--at-once", type=int, default=16, help="default: %(default)s")
    add("--crashes", type=int, default=4, help="of the engine (default: %(default)s)")
    add("--layout", default="per_slot", choices=("per_slot", "unified"), help="default: %(default)s")
    add("--seed", type=int, default=1, help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what happened as JSON; returns 1 when something was wrong or leaked."""
    args = _parser().parse_args(argv)
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model.write(folder / "tiny.gguf", "tiny")
        profile = folder / "soak.toml"
        profile.write_text(_PROFILE.format(model=model, layout=args.layout, folder=folder), encoding="utf-8")
        command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--profile", str(profile)]
        try:
            with server([*command, "--port", str(port)], port) as url:
                processes = psutil.Process().children(recursive=True)
                report = asyncio.run(play(url, folder, args))
        except (ServerError, httpx.HTTPError) as error:
            sys.stderr.write(f"soak: {error!r}\n")
            return 1
    _, alive = psutil.wait_procs(processes, timeout=5)
    report["faults"] += [f"process {process.pid} is still there" for process in alive]
    print(json.dumps(report, indent=1))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
