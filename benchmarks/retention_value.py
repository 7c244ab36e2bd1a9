"""What each retention policy is worth: the same agents on the real server, policy after policy.

example:
  python benchmarks/retention_value.py --workloads coding,infercept --repeats 2 --json value.json

Every repeat gives all policies the same agents, in turns, each on a fresh server with an empty history and an
empty cache folder; who is first changes from repeat to repeat. All begin with the same calibration, made at
the start: what a server measures for itself as it starts varies enough to run two segments at a time in one
run and four in another. The figures are mean job completion time and time to first token after tool calls, as
medians, and their ratios to `adaptive` with standard errors. The machine's speed changes from run to run, and
queues make more of it: the ratios at `equal speed` are without that.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from side_by_side import ServerError, free_port, server

from astraea_local.bench import coding, infercept_agents
from astraea_local.bench.coding import Agent
from astraea_local.bench.replay import complete, open_client, run
from astraea_local.profile import Profile, load, override

_POLICIES = "adaptive,keep,drop,lru,paper"


def agents_of(workload: str, seed: int, args: argparse.Namespace) -> tuple[Agent, ...]:
    """The agents of one repeat."""
    if workload == "coding":
        return coding.workload(seed, agents=args.agents, rate=args.rate, context_limit=args.context_limit)
    return infercept_agents.workload(
        seed,
        agents=args.agents,
        rate=args.rate,
        context_limit=args.infercept_limit,
        time_scale=args.time_scale,
    )


def as_toml(profile: Profile) -> str:
    """The profile as a file's text."""
    lines = []
    for section, value in profile.model_dump().items():
        if isinstance(value, dict):
            lines.append(f"[{section}]")
            lines += [f"{name} = {json.dumps(each)}" for name, each in value.items()]
    return "\n".join(lines)


def write_profile(file: Path, policy: str, args: argparse.Namespace) -> None:
    """The profile of one server."""
    changes = {
        "retention.policy": policy,
        "kv.layout": args.layout,
        "context.slots": args.slots,
        "context.size": args.ctx,
        "model.threads": args.threads,
    }
    file.write_text(as_toml(override(load(args.profile), changes)), encoding="utf-8")


def calibrate(state_home: Path, args: argparse.Namespace) -> None:
    """Measures the speeds that all servers begin with; they lie in `state_home` afterwards.

    Raises `OSError` when they could not be measured.
    """
    file = state_home / "profile.toml"
    write_profile(file, "adaptive", args)
    command = [sys.executable, "-m", "astraea_local", "calibrate", "--profile", str(file)]
    env = {**os.environ, "XDG_STATE_HOME": str(state_home)}
    if subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=False).returncode:
        raise OSError("the calibration failed")


def measure(workload: str, policy: str, seed: int, speeds: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run: figures of the agents and counters of the server. `speeds` is where `calibrate` left them."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(speeds, folder, dirs_exist_ok=True)
        os.environ["XDG_STATE_HOME"] = folder
        file = Path(folder) / "profile.toml"
        write_profile(file, policy, args)
        command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--profile", str(file)]
        with server([*command, "--port", str(port)], port) as url:
            asyncio.run(_warm_up(url))
            result = asyncio.run(run(url, agents_of(workload, seed, args), headers="session"))
            state = httpx.get(f"{url.removesuffix('/v1')}/astraea/v1/state", timeout=30).json()
    kv = state["kv"]
    counters = {name: kv[name] for name in ("parks", "restores", "prefetches", "evictions", "compactions")}
    run_of = {"workload": workload, "policy": policy, "seed": seed}
    return {**run_of, **result.summary(), **counters, "steps": state["steps"]}


def effects(
    rows: Sequence[dict[str, Any]], figure: str, *, equal_speed: bool
) -> dict[str, tuple[float, float]]:
    """Of each policy, the ratio of a figure to that of `adaptive`, and its standard error.

    Least squares of the figure's logarithm over repeats and policies. With `equal_speed` the logarithm of the
    seconds that llama.cpp took for the whole run is a term too: all policies give it the same tokens, so
    these seconds tell how fast the machine was, and a slow run counts for the policy no more. NaN is what
    cannot be told.
    """
    seeds = sorted({row["seed"] for row in rows})
    others = sorted({row["policy"] for row in rows} - {"adaptive"})
    terms = [
        [float(row["seed"] == seed) for seed in seeds]
        + [float(row["policy"] == policy) for policy in others]
        + [math.log(row["steps"]["steps"] * row["steps"]["llama_decode_ms"])] * equal_speed
        for row in rows
    ]
    matrix, found = np.array(terms), np.log([row[figure] for row in rows])
    solved, _residuals, rank, _singular = np.linalg.lstsq(matrix, found, rcond=None)
    freedom = len(found) - int(rank)
    squares = float(((found - matrix @ solved) ** 2).sum())
    variance = (squares / freedom if freedom > 0 else math.nan) * np.linalg.pinv(matrix.T @ matrix)
    ratios = {"adaptive": (1.0, 0.0)}
    for index, policy in enumerate(others, start=len(seeds)):
        ratios[policy] = math.exp(solved[index]), math.sqrt(variance[index, index])
    return ratios


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: medians over the repeats, and ratios to `adaptive` with their standard errors (`effects`)."""
    lines = [
        "| workload | policy | JCT s | ratio | equal speed | p95 s | TTFT s | ratio | equal speed | cached |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        those = [row for row in rows if row["workload"] == workload]
        ratios = [
            effects(those, figure, equal_speed=equal)
            for figure in ("mean_jct_s", "mean_ttft_after_tool_s")
            for equal in (False, True)
        ]
        for policy in ratios[0]:
            mine = [row for row in those if row["policy"] == policy]
            jct, p95, ttft, cached = (
                statistics.median(row[name] for row in mine)
                for name in ("mean_jct_s", "p95_jct_s", "mean_ttft_after_tool_s", "cached_share")
            )
            raw_jct, jct_ratio, raw_ttft, ttft_ratio = (
                f"{r[policy][0]:.3f} ±{r[policy][1]:.3f}" for r in ratios
            )
            lines.append(
                f"| {workload} | {policy} | {jct:.1f} | {raw_jct} | {jct_ratio} | {p95:.1f} "
                f"| {ttft:.2f} | {raw_ttft} | {ttft_ratio} | {cached:.0%} |"
            )
    return "\n".join(lines)


async def _warm_up(url: str) -> None:
    async with open_client(url) as client:
        await complete(client, [{"role": "user", "content": "warm up"}], 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--workloads", default="coding,infercept", help="default: %(default)s")
    add("--policies", default=_POLICIES, help="default: %(default)s")
    add("--profile", default="smollm2-cpu", help="default: %(default)s")
    add("--layout", default="per_slot", choices=("per_slot", "unified"), help="default: %(default)s")
    add("--slots", type=int, default=4, help="default: %(default)s")
    add("--ctx", type=int, default=8192, help="KV cells in total (default: %(default)s)")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--agents", type=int, default=12, help="default: %(default)s")
    add("--rate", type=float, default=0.25, help="arrivals per second (default: %(default)s)")
    add("--context-limit", type=int, default=2000, help="of coding agents (default: %(default)s)")
    add("--infercept-limit", type=int, default=1200, help="of InferCept's jobs (default: %(default)s)")
    add("--time-scale", type=float, default=0.25, help="of InferCept's waits (default: %(default)s)")
    add("--seed", type=int, default=1, help="of the first repeat (default: %(default)s)")
    add("--repeats", type=int, default=2, help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--show", type=Path, nargs="+", metavar="FILE", help="only print the table of figures written before")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, or 1 when a server failed or an agent did."""
    args = _parser().parse_args(argv)
    if args.show:
        print(table([row for file in args.show for row in json.loads(file.read_text(encoding="utf-8"))]))
        return 0
    rows: list[dict[str, Any]] = []
    failed = False
    policies = args.policies.split(",")
    try:
        with tempfile.TemporaryDirectory() as speeds:
            calibrate(Path(speeds), args)
            for number, workload in itertools.product(range(args.repeats), args.workloads.split(",")):
                seed, first = args.seed + number, number % len(policies)
                for policy in policies[first:] + policies[:first]:
                    sys.stderr.write(f"seed {seed}, {workload}, {policy}\n")
                    rows.append(measure(workload, policy, seed, Path(speeds), args))
                    if args.json is not None:
                        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    except (ServerError, OSError, httpx.HTTPError) as error:
        sys.stderr.write(f"retention_value: {error}\n")
        failed = True
    if rows:
        print(table(rows))
    errors = sum(row["errors"] for row in rows)
    if errors:
        sys.stderr.write(f"retention_value: {errors} agents failed\n")
    return 1 if failed or errors else 0


if __name__ == "__main__":
    sys.exit(main())
