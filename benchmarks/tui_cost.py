"""What the terminal UI costs: `python benchmarks/tui_cost.py` on a terminal of 120x40 and 500 jobs.

Three figures of the UI's own process in a pseudo-terminal, fed by a stand-in server with four frames a
second: its share of one core, its resident memory, and the time from its start to the first drawn agent, the
median of several starts. With `--server URL` also tokens per second of a real, idle server with and without
the UI attached, in turns.
"""

import argparse
import asyncio
import fcntl
import itertools
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import psutil
import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from astraea_local.tui.mock import MockWorld

_FRAMES = 40
_STARTS = 7
_PATIENCE_S = 30.0
_WARM_UP_S = 3.0


def stand_in(jobs: int) -> Starlette:
    """A server whose frames were made before, so that it takes next to nothing."""
    world = MockWorld(1, agents=jobs)
    for _ in range(400):
        world.step()
    frames = []
    for _ in range(_FRAMES):
        world.step()
        frames.append(world.frame().model_dump_json())

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def events(_request: Request) -> EventSourceResponse:
        async def stream() -> AsyncIterator[ServerSentEvent]:
            for frame in itertools.cycle(frames):
                yield ServerSentEvent(event="frame", data=frame)
                await asyncio.sleep(0.25)

        return EventSourceResponse(stream(), sep="\n")

    return Starlette(routes=[Route("/health", health), Route("/astraea/v1/events", events)])


@contextmanager
def serving(jobs: int) -> Iterator[str]:
    """The stand-in in a process of its own; its URL."""
    command = [sys.executable, __file__, "--stand-in", str(jobs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def stand_in_main(jobs: int) -> None:
    """Prints the URL, then serves until it is ended."""
    config = uvicorn.Config(stand_in(jobs), port=0, log_level="error")
    sock = config.bind_socket()
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[sock])


class Ui:
    """`astraea-local top` in a pseudo-terminal whose output is read and counted."""

    def __init__(self, url: str, columns: int, lines: int, sign: bytes) -> None:
        main, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.started = time.monotonic()
        command = [sys.executable, "-m", "astraea_local", "top", url]
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        # An installed program is compiled once, not at each start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment)
        os.close(end)
        self.painted = threading.Event()
        self.first_paint_s = 0.0
        self.bytes = 0
        self._main = main
        self._sign = sign
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        seen = b""
        while True:
            try:
                data = os.read(self._main, 1 << 16)
            except OSError:
                return
            self.bytes += len(data)
            if not self.painted.is_set():
                seen += data
                if self._sign in seen:
                    self.first_paint_s = time.monotonic() - self.started
                    self.painted.set()

    def stop(self) -> None:
        """Ends it as `kill` would."""
        self.process.terminate()
        self.process.wait(10)
        os.close(self._main)


def first_paint(url: str, columns: int, lines: int) -> float:
    """Seconds from the start to the first drawn agent: the median, after one start that compiles."""
    taken = []
    for _ in range(1 + _STARTS):
        ui = Ui(url, columns, lines, b"queued")
        if not ui.painted.wait(_PATIENCE_S):
            raise SystemExit(f"nothing was drawn within {_PATIENCE_S:.0f} s")
        ui.stop()
        taken.append(ui.first_paint_s)
    return statistics.median(taken[1:])


def cost(url: str, columns: int, lines: int, seconds: float) -> dict[str, float]:
    """The UI's share of a core, megabytes, and bytes drawn per second."""
    ui = Ui(url, columns, lines, b"queued")
    try:
        time.sleep(_WARM_UP_S + 2)
        watched = psutil.Process(ui.process.pid)
        before, drawn, at = watched.cpu_times(), ui.bytes, time.monotonic()
        time.sleep(seconds)
        after, lasted = watched.cpu_times(), time.monotonic() - at
        used = after.user + after.system - before.user - before.system
        return {
            "cpu_share": used / lasted,
            "rss_mb": watched.memory_info().rss / 1e6,
            "drawn_bytes_s": (ui.bytes - drawn) / lasted,
        }
    finally:
        ui.stop()


def tokens_per_second(url: str, streams: int, tokens: int) -> float:
    """Output tokens per second of that many answers at once."""

    async def one(client: httpx.AsyncClient, index: int) -> int:
        body = {
            "prompt": f"{index}: once upon a time",
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        answer = await client.post("/v1/completions", json=body)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    async def all_of_them() -> float:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            at = time.monotonic()
            done = await asyncio.gather(*(one(client, index) for index in range(streams)))
            return sum(done) / (time.monotonic() - at)

    return asyncio.run(all_of_them())


def throughput(url: str, rounds: int) -> dict[str, float]:
    """Medians with and without the UI attached, in turns, and what it costs."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    tokens_per_second(url, 4, 64)
    for index in range(rounds):
        # Each comes first as often as the other.
        for attached in (True, False) if index % 2 else (False, True):
            ui = Ui(url, 120, 40, b"agents") if attached else None
            if ui is not None:
                time.sleep(_WARM_UP_S)
            rates[attached].append(tokens_per_second(url, 4, 200))
            if ui is not None:
                ui.stop()
    without, with_ui = statistics.median(rates[False]), statistics.median(rates[True])
    return {"tokens_s_without": without, "tokens_s_with": with_ui, "loss": 1 - with_ui / without}


def main() -> None:
    """The command line; prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--server", metavar="URL", help="a real, idle server")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--stand-in", type=int, metavar="JOBS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stand_in is not None:
        stand_in_main(args.stand_in)
        return
    with serving(args.jobs) as url:
        found: dict[str, float] = cost(url, args.columns, args.lines, args.seconds)
        found["first_paint_s"] = first_paint(url, args.columns, args.lines)
    if args.server is not None:
        found |= throughput(args.server, args.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
