"""Other programs take VRAM step by step until it is critical, and release it: what becomes of twelve agents.

example:
  python benchmarks/pressure_timeline.py --png docs/images/pressure.png --json pressure.json

Readings are simulated (`memory.debug_pressure`), everything else is real: the context shrinks and grows while
the agents of the `coding` workload are at work. Nobody may fail.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from side_by_side import ServerError, free_port, server

from astraea_local.bench.coding import workload
from astraea_local.bench.replay import Result, run
from astraea_local.frame import StateFrame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Shares of the memory beside the server's own that others hold, and for how many seconds.
_SCRIPT = ((0.0, 10.0), (0.3, 8.0), (0.6, 8.0), (0.9, 8.0), (1.0, 25.0), (0.6, 6.0), (0.0, 0.0))
_SAMPLE_S = 0.25
_CALM_S = 5.0
_PATIENCE_S = 60.0
_BLUE, _ORANGE, _GREY, _GREEN = "#0072b2", "#d55e00", "#777777", "#009e73"


async def play(url: str, args: argparse.Namespace) -> tuple[Result, list[dict[str, Any]]]:
    """The agents' results, and a row every quarter of a second, from start to end."""
    root = url.removesuffix("/v1")
    agents = workload(args.seed, agents=args.agents, rate=args.rate, context_limit=args.context_limit)
    async with httpx.AsyncClient(base_url=root, timeout=60.0, trust_env=False) as http:
        rows: list[dict[str, Any]] = []
        beside = [asyncio.create_task(_watch(http, rows)), asyncio.create_task(_press(http))]
        try:
            result = await run(url, agents, headers="session")
            # The last step of the script is the calm in which the context grows back.
            await beside[1]
            await _until(http, lambda frame: frame.server.context >= args.ctx)
            await asyncio.sleep(_CALM_S)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    return result, rows


async def _press(http: httpx.AsyncClient) -> None:
    """Plays the script of readings."""
    frame = await _until(http, lambda frame: frame.memory.context_bytes > 0)
    ours = frame.memory.weights_bytes + frame.memory.context_bytes
    total = 2 * ours
    most = int((frame.memory.watermarks["critical"] + 0.01) * total) - ours
    for share, seconds in _SCRIPT:
        reading = {"vram_total": total, "vram_others": int(share * most)}
        (await http.post("/astraea/v1/debug/pressure", json=reading)).raise_for_status()
        await asyncio.sleep(seconds)


async def _until(http: httpx.AsyncClient, true: Callable[[StateFrame], bool]) -> StateFrame:
    """The first frame of which that is true, or the one that a minute's waiting led to."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        frame = await _frame(http)
        if true(frame) or time.monotonic() > deadline:
            return frame
        await asyncio.sleep(_SAMPLE_S)


async def _watch(http: httpx.AsyncClient, rows: list[dict[str, Any]]) -> None:
    started = time.monotonic()
    while True:
        frame = await _frame(http)
        total = frame.memory.vram_total or float("inf")
        rows.append(
            {
                "at_s": time.monotonic() - started,
                "cells": frame.server.context,
                "cells_used": frame.kv.cells_used,
                "slots": frame.server.slots,
                "others": (frame.memory.vram_others or 0) / total,
                "ours": (frame.memory.weights_bytes + frame.memory.context_bytes) / total,
                "pressure": frame.memory.pressure.get("vram", "low"),
                "running": sum(slot.segment is not None for slot in frame.slots),
                "queued": len(frame.queue),
                "ram_mib": frame.kv.ram_bytes / (1 << 20),
                "rebuilds": frame.kv.rebuilds,
                "failed": frame.totals.segments_failed,
                "decoded": frame.totals.decoded_tokens,
            }
        )
        await asyncio.sleep(_SAMPLE_S)


async def _frame(http: httpx.AsyncClient) -> StateFrame:
    return StateFrame.model_validate_json((await http.get("/astraea/v1/state")).raise_for_status().content)


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Three rows over one clock: memory, cells, segments."""
    # Without pyplot: no window system, and nothing global.
    from matplotlib.figure import Figure

    at = [row["at_s"] for row in rows]

    def line(axes: "Axes", name: str, colour: str, label: str, **look: Any) -> None:
        axes.plot(at, [row[name] for row in rows], color=colour, label=label, drawstyle="steps-post", **look)

    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    memory, cells, work = figure.subplots(3, sharex=True)
    memory.stackplot(
        at,
        [row["ours"] for row in rows],
        [row["others"] for row in rows],
        labels=["this server", "other programs"],
        colors=[_BLUE, _GREY],
        alpha=0.6,
    )
    memory.set_ylabel("share of the VRAM")
    critical = [row["pressure"] == "critical" for row in rows]
    memory.fill_between(
        at, 0, 1, where=critical, color=_ORANGE, alpha=0.25, step="post", label="pressure critical"
    )
    line(cells, "cells", _BLUE, "KV cells of the context")
    line(cells, "cells_used", _ORANGE, "in use")
    cells.set_ylabel("cells")
    parked = cells.twinx()
    line(parked, "ram_mib", _GREEN, "parked in RAM, MiB", linestyle="--")
    parked.set_ylabel("MiB")
    line(work, "running", _BLUE, "segments running")
    line(work, "queued", _ORANGE, "waiting for a slot")
    line(work, "failed", _GREY, "failed (none)")
    work.set_ylabel("segments")
    work.set_xlabel("seconds")
    for axes in (memory, cells, parked, work):
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right" if axes is not parked else "lower right", fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def summary(result: Result, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What happened, in figures."""
    figures = result.summary()
    return {
        "agents": figures["agents"],
        "errors": figures["errors"],
        "failed_segments": rows[-1]["failed"],
        "mean_jct_s": figures["mean_jct_s"],
        "cached_share": figures["cached_share"],
        "cells_at_first": rows[0]["cells"],
        "cells_least": min(row["cells"] for row in rows),
        "cells_at_last": rows[-1]["cells"],
        "rebuilds": rows[-1]["rebuilds"],
        "critical_s": _SAMPLE_S * sum(row["pressure"] == "critical" for row in rows),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--layout", default="per_slot", choices=("per_slot", "unified"), help="default: %(default)s")
    add("--slots", type=int, default=4, help="default: %(default)s")
    add("--ctx", type=int, default=8192, help="KV cells in total (default: %(default)s)")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--agents", type=int, default=12, help="default: %(default)s")
    add("--rate", type=float, default=0.5, help="arrivals per second (default: %(default)s)")
    add("--context-limit", type=int, default=1200, help="tokens of an agent (default: %(default)s)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--png", type=Path, metavar="FILE", help="draw the timeline there")
    add("--json", type=Path, metavar="FILE", help="write all rows there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a summary as JSON; returns 1 when somebody failed or the context did not follow."""
    args = _parser().parse_args(argv)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "pressure.toml"
        profile.write_text(
            f'[model]\nsource = "demo"\ngpu_layers = 0\nthreads = {args.threads}\n'
            f'[context]\nsize = {args.ctx}\nslots = {args.slots}\n[kv]\nlayout = "{args.layout}"\n'
            f'[retention]\ndisk_path = "{folder}/kv"\n[prediction]\nhistory = false\n'
            f"[memory]\npoll_ms = 100\ncalm_s = {_CALM_S}\ndebug_pressure = true\n",
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--profile", str(profile)]
        try:
            with server([*command, "--port", str(port)], port) as url:
                result, rows = asyncio.run(play(url, args))
        except (ServerError, httpx.HTTPError) as error:
            sys.stderr.write(f"pressure_timeline: {error}\n")
            return 1
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if args.png is not None:
        plot(rows, args.png)
    found = summary(result, rows)
    print(json.dumps(found, indent=1))
    followed = found["cells_least"] < found["cells_at_first"] == found["cells_at_last"]
    return 0 if followed and not found["errors"] and not found["failed_segments"] else 1


if __name__ == "__main__":
    sys.exit(main())
