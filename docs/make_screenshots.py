"""Makes docs/images/tui-*.svg from a real run: `python docs/make_screenshots.py`.

Starts a server with the demo model, lets agents of the replay workload work on it, records its frames until
there is much to see, and draws the last of them. `--keep FOLDER` keeps the recording, `--from FOLDER` draws
from it again.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from astraea_local.bench.coding import workload
from astraea_local.bench.replay import run
from astraea_local.frame import StateFrame
from astraea_local.job_detail import JobDetail
from astraea_local.past_jobs import Page, Query
from astraea_local.tui.actions import ActionError, HttpControl, Refusing
from astraea_local.tui.app import AstraeaApp
from astraea_local.tui.connection import open_client
from astraea_local.tui.record import Recorder, Recording
from astraea_local.tui.source import HttpSource, Link, Transport, Update

_IMAGES = Path(__file__).parent / "images"
_LEAST_S = 60.0
_MOST_S = 150.0
_SHOWN_FRAMES = 300
_SETTLING = 5
"""Rounds in which a screen that was opened finds its layout."""
_PICTURES = (
    ("tui-overview", "", (140, 44)),
    ("tui-small", "", (80, 24)),
    ("tui-job", "job", (120, 40)),
    ("tui-kv-map", "v", (120, 40)),
    ("tui-history", "h", (120, 30)),
)


class Recorded:
    """A source that gives all frames at once."""

    name = "recorded"
    interval = 0.25
    transport: Transport | None = None

    def __init__(self, frames: Sequence[StateFrame]) -> None:
        self.given = asyncio.Event()
        self._frames = frames

    async def updates(self) -> AsyncIterator[Update]:
        """The frames, then nothing more."""
        yield Link("live")
        for frame in self._frames:
            yield frame
        self.given.set()
        await asyncio.Event().wait()


class Said(Refusing):
    """What the server said about jobs and their history when the recording ended."""

    def __init__(self, file: Path) -> None:
        self._said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))

    async def detail(self, job: str) -> JobDetail:
        """The life of a job. Raises `ActionError` for one that was not there."""
        if job not in self._said["jobs"]:
            raise ActionError(f"there was no job {job!r}")
        return JobDetail.model_validate(self._said["jobs"][job])

    async def history(self, query: Query) -> Page:
        """Those that had ended, the newest first."""
        page = Page.model_validate(self._said["history"])
        return page.model_copy(update={"jobs": page.jobs[: query.limit]})


def is_lively(frame: StateFrame) -> bool:
    """Whether there is something of everything to see."""
    states = {job.state for job in frame.jobs}
    parked = any(job.kv in ("ram", "disk") for job in frame.jobs)
    return states >= {"decode", "queued", "waiting"} and parked


async def record(url: str, folder: Path, agents: int) -> None:
    """Records the server while agents work on it, and what it says about them at the end."""
    async with open_client(url, None) as client:
        work = asyncio.create_task(run(f"{url}/v1", workload(1, agents=agents, rate=0.5)))
        with Recorder(folder / "run.jsonl.gz") as recorder:
            names = await _watch(HttpSource(url, client, on_raw=recorder.write), work)
        control, lives = HttpControl(client), {}
        for name in names:
            # It may have ended since.
            with contextlib.suppress(ActionError):
                lives[name] = (await control.detail(name)).model_dump()
        history = (await control.history(Query(limit=100))).model_dump()
        text = json.dumps({"jobs": lives, "history": history})
        (folder / "said.json").write_text(text, encoding="utf-8")
        work.cancel()


async def _watch(source: HttpSource, work: asyncio.Task[Any]) -> list[str]:
    """The jobs at the end: when there is enough to see, or the work is done, or it takes too long."""
    began, names = time.monotonic(), list[str]()
    async for update in source.updates():
        if not isinstance(update, StateFrame):
            continue
        names, lasted = [job.job for job in update.jobs], time.monotonic() - began
        if work.done() or lasted > _MOST_S or (lasted > _LEAST_S and is_lively(update)):
            break
    return names


def serve_and_record(folder: Path, agents: int) -> None:
    """A server of its own with default settings, for the time of the recording."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--port", str(port)]
    with tempfile.TemporaryDirectory() as own:
        environment = {**os.environ, "XDG_STATE_HOME": own, "XDG_CACHE_HOME": own}
        with subprocess.Popen(command, env=environment) as server:  # noqa: S603
            try:
                _wait_for(url, server)
                asyncio.run(record(url, folder, agents))
            finally:
                server.send_signal(signal.SIGINT)
                # A second one: nobody waits for the answers that are still being written.
                server.send_signal(signal.SIGINT)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not start")


async def draw(frames: Sequence[StateFrame], said: Said, name: str, keys: str, size: tuple[int, int]) -> None:
    """One picture of the last frame, with all before it in the graphs."""
    source = Recorded(frames)
    ui = AstraeaApp(source, said, clock=lambda: frames[-1].at)
    async with ui.run_test(size=size) as pilot:
        await source.given.wait()
        if keys == "job":
            ui.open_job(max(frames[-1].jobs, key=lambda job: job.segments).job)
        elif keys:
            await pilot.press(keys)
        for worker in [worker for worker in ui.workers if worker.node is ui.screen]:
            await worker.wait()
        for _ in range(_SETTLING):
            await pilot.pause()
        (_IMAGES / f"{name}.svg").write_text(ui.export_screenshot(title="astraea-local"), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=12)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--from", type=Path, metavar="FOLDER", dest="source")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.source or Path(made)
        if args.source is None:
            serve_and_record(folder, args.agents)
        if args.keep is not None:
            shutil.copytree(folder, args.keep)
        with Recording(folder / "run.jsonl.gz") as recording:
            first = max(0, len(recording) - _SHOWN_FRAMES)
            frames = [recording.frame(index) for index in range(first, len(recording))]
        for name, keys, size in _PICTURES:
            asyncio.run(draw(frames, Said(folder / "said.json"), name, keys, size))
    print(f"{len(_PICTURES)} pictures of a run of {frames[-1].at - frames[0].at:.0f} s in {_IMAGES}")


if __name__ == "__main__":
    main()
