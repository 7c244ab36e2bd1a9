"""Makes docs/images/tui-*.svg from a real run: `python docs/make_screenshots.py`.

Starts a server with the demo model, lets eight agents of the replay workload work on it, records its frames,
and draws the busiest of them. `--recording FILE` draws from an earlier recording instead.
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from astraea_local.bench.coding import workload
from astraea_local.bench.replay import run
from astraea_local.frame import StateFrame
from astraea_local.tui.actions import Refusing
from astraea_local.tui.app import AstraeaApp
from astraea_local.tui.record import Recorder, Recording
from astraea_local.tui.source import HttpSource, ReplaySource, open_client

_IMAGES = Path(__file__).parent / "images"
_PICTURES = (
    ("tui-overview", "", (140, 44)),
    ("tui-small", "", (80, 24)),
    ("tui-job", "enter", (120, 40)),
    ("tui-kv-map", "v", (120, 40)),
    ("tui-help", "question_mark", (120, 40)),
)


async def record(url: str, file: Path, agents: int) -> None:
    """Records the server while the agents work on it, for three minutes at most."""
    with Recorder(file) as recorder:
        async with open_client(url, None) as client:

            async def watch() -> None:
                async for _ in HttpSource(url, client, on_raw=recorder.write).updates():
                    pass

            watching = asyncio.create_task(watch())
            work = run(f"{url}/v1", workload(1, agents=agents, rate=0.5))
            try:
                await asyncio.wait_for(work, 180)
            except TimeoutError:
                print("three minutes are enough")
            watching.cancel()


def serve_and_record(file: Path, agents: int) -> None:
    """A server of its own with default settings and no history, for the time of the recording."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--port", str(port)]
    environment = {**os.environ, "XDG_STATE_HOME": tempfile.mkdtemp(), "XDG_CACHE_HOME": tempfile.mkdtemp()}
    with subprocess.Popen(command, env=environment) as server:  # noqa: S603
        try:
            _wait_for(url, server)
            asyncio.run(record(url, file, agents))
        finally:
            server.send_signal(signal.SIGINT)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not start")


def busiest(recording: Recording) -> int:
    """The frame with most jobs of most different states, the later one of equals."""

    def life(frame: StateFrame) -> tuple[int, int, int]:
        tiers = {job.kv for job in frame.jobs}
        return len({job.state for job in frame.jobs}) + len(tiers), len(frame.queue), len(frame.jobs)

    return max(range(len(recording)), key=lambda index: (life(recording.frame(index)), index))


async def draw(recording: Recording, last: int, name: str, keys: str, size: tuple[int, int]) -> None:
    """One picture, of the frame `last` with all before it in the graphs."""
    ui = AstraeaApp(ReplaySource(recording), Refusing())
    async with ui.run_test(size=size) as pilot:
        await pilot.press("space")
        for index in range(max(0, last - 600), last + 1):
            ui.take(recording.frame(index))
        ui.view.link = type(ui.view.link)("live")
        ui.redraw()
        await pilot.pause()
        if keys:
            await pilot.press(*keys.split())
        ui.view.link = type(ui.view.link)("live")
        ui.redraw()
        await pilot.pause(0.3)
        (_IMAGES / f"{name}.svg").write_text(ui.export_screenshot(title="astraea-local"), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--recording", type=Path)
    args = parser.parse_args()
    file = args.recording or Path(tempfile.mkdtemp()) / "run.jsonl.gz"
    if args.recording is None:
        serve_and_record(file, args.agents)
    _IMAGES.mkdir(exist_ok=True)
    with Recording(file) as recording:
        last = busiest(recording)
        print(f"frame {last + 1} of {len(recording)} in {file}")
        for name, keys, size in _PICTURES:
            asyncio.run(draw(recording, last, name, keys, size))


if __name__ == "__main__":
    main()
