"""What each retention policy is worth: the same agents on the real server, policy after policy.

example:
  python benchmarks/retention_value.py --workloads coding,infercept --repeats 2 --json value.json

Every repeat gives all policies the same agents, in turns, each on a fresh server with an empty history and an
empty cache folder. The figures are mean job completion time and time to first token after tool calls; a ratio
below 1 is better than `adaptive` in the same repeat.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
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


def measure(workload: str, policy: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: figures of the agents and counters of the server."""
    changes = {
        "retention.policy": policy,
        "kv.layout": args.layout,
        "context.slots": args.slots,
        "context.size": args.ctx,
        "model.threads": args.threads,
    }
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        file = Path(folder) / "profile.toml"
        file.write_text(as_toml(override(load(args.profile), changes)), encoding="utf-8")
        command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--profile", str(file)]
        with server([*command, "--port", str(port)], port) as url:
            asyncio.run(_warm_up(url))
            result = asyncio.run(run(url, agents_of(workload, seed, args), headers="session"))
            state = httpx.get(f"{url.removesuffix('/v1')}/astraea/v1/state", timeout=30).json()
    kv = state["kv"]
    counters = {name: kv[name] for name in ("parks", "restores", "prefetches", "evictions", "compactions")}
    return {"workload": workload, "policy": policy, "seed": seed, **result.summary(), **counters}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: medians over the repeats, and the medians of the ratios to `adaptive`."""
    lines = [
        "| workload | policy | mean JCT s | ratio | p95 s | TTFT after tools s | ratio | cached | errors |"
    ]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            mine = {r["seed"]: r for r in rows if (r["workload"], r["policy"]) == (workload, policy)}
            base = {r["seed"]: r for r in rows if (r["workload"], r["policy"]) == (workload, "adaptive")}
            if not mine:
                continue

            def median(name: str, of: dict[int, dict[str, Any]] = mine) -> float:
                return statistics.median(r[name] or 0.0 for r in of.values())

            def ratio(
                name: str, of: dict[int, dict[str, Any]] = mine, to: dict[int, dict[str, Any]] = base
            ) -> str:
                pairs = [r[name] / to[seed][name] for seed, r in of.items() if seed in to and to[seed][name]]
                return f"{statistics.median(pairs):.3f}" if pairs else "-"

            lines.append(
                f"| {workload} | {policy} | {median('mean_jct_s'):.1f} | {ratio('mean_jct_s')} "
                f"| {median('p95_jct_s'):.1f} | {median('mean_ttft_after_tool_s'):.2f} "
                f"| {ratio('mean_ttft_after_tool_s')} | {median('cached_share'):.0%} "
                f"| {sum(r['errors'] for r in mine.values())} |"
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, or 1 when a server failed or an agent did."""
    args = _parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    failed = False
    try:
        for seed in range(args.seed, args.seed + args.repeats):
            for workload in args.workloads.split(","):
                for policy in args.policies.split(","):
                    sys.stderr.write(f"seed {seed}, {workload}, {policy}\n")
                    rows.append(measure(workload, policy, seed, args))
                    if args.json is not None:
                        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    except (ServerError, OSError, httpx.HTTPError) as error:
        sys.stderr.write(f"retention_value: {error}\n")
        failed = True
    if rows:
        print(table(rows))
    return 1 if failed or any(row["errors"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
