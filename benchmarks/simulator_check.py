"""Does the simulator tell the truth: the same agents on the real server and in simulation, policy by policy.

example:
  python benchmarks/simulator_check.py --policies fcfs,astraea_paper,astraea --repeats 3

Calibrates, then takes turns: every policy serves the agents of a seed over HTTP, with an empty history, and
is then simulated with the token counts that the server reported and the calibrated speeds. Their shape stays;
their height is what the server observed on average during the run, because front and clients share its
cores, and because machines drift within minutes.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from side_by_side import ServerError, astraea_command, free_port, server

from astraea_local.bench.coding import Agent, workload
from astraea_local.bench.experiment import Setting, simulate
from astraea_local.bench.machine import calibrated
from astraea_local.bench.replay import AgentResult, Result, complete, open_client, run
from astraea_local.bench.workloads import Call, SimJob
from astraea_local.calibration import Calibration
from astraea_local.frame import StateFrame
from astraea_local.model_source import resolve
from astraea_local.profile import load
from astraea_local.scheduler.speeds import Speeds

_KIND = "agent"


def calibration(args: argparse.Namespace) -> Calibration:
    """Measures the model with the server's settings, and stores it where the server looks."""
    command = [sys.executable, "-m", "astraea_local", "calibrate", "--profile", args.profile, "--json"]
    command += ["--ctx", str(args.ctx), "--slots", str(args.slots), "--threads", str(args.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Calibration.model_validate_json(done.stdout)


def as_simulated(agents: Sequence[Agent], results: Sequence[AgentResult]) -> list[SimJob]:
    """The jobs as they were on the server: its token counts, the workload's arrivals and waits."""
    jobs = []
    for agent, result in zip(agents, results, strict=True):
        calls, context = [], 0
        for turn, segment in zip(agent.turns, result.segments, strict=True):
            new = max(1, segment.prompt_tokens - context)
            last = turn is agent.turns[-1]
            calls.append(Call(new, segment.output_tokens, "" if last else "tool", turn.tool_seconds))
            context = segment.prompt_tokens + segment.output_tokens
        # The system prompt is the same for all; the template's first words are part of it.
        shared = min(calls[0].new_tokens - 1, len(agent.system) // 5)
        jobs.append(SimJob(agent.id, _KIND, agent.arrival_s, shared, tuple(calls)))
    return jobs


def compare(seed: int, policy: str, found: Calibration, args: argparse.Namespace) -> dict[str, Any]:
    """One real and one simulated run: mean and p95 JCT of both, seconds."""
    agents = workload(seed, agents=args.agents, rate=args.rate, context_limit=args.context_limit)
    machine = calibrated(found)
    port = free_port()
    named = argparse.Namespace(**{**vars(args), "policy": policy, "serve_args": ""})
    with server(astraea_command(resolve("demo"), port, named), port) as url:
        asyncio.run(_warm_up(url))
        before = _state(url)
        real, (prefill, decode) = asyncio.run(_observed(url, agents, machine.speeds))
        work = _work(before, _state(url))
    profile = load(args.profile)
    step_s = profile.scheduler.max_step_ms / 1000
    speeds = slower(machine.speeds, prefill, decode)
    machine = replace(machine, speeds=speeds, max_step_s=step_s, signals_end=False)
    setting = Setting(policy, machine, profile.scheduler, retention="adaptive", exact_limits=True)
    found_there = simulate(setting, as_simulated(agents, real.agents))
    simulated = [job.jct_s for job in found_there.jobs]
    summary = real.summary()
    mean = summary["mean_jct_s"]
    assert mean is not None
    return {
        "seed": seed,
        "policy": policy,
        "real_mean_s": mean,
        "real_p95_s": summary["p95_jct_s"],
        "simulated_mean_s": statistics.fmean(simulated),
        "simulated_p95_s": statistics.quantiles(simulated, n=20, method="inclusive")[-1],
        "prefill_correction": prefill,
        "decode_correction": decode,
        "ratio": statistics.fmean(simulated) / mean,
        "real_work": work,
        "simulated_work": {
            "busy_s": found_there.busy_s,
            "prefilled": found_there.prefilled,
            "recomputed": found_there.recomputed,
            "decoded": found_there.decoded,
        },
        "errors": summary["errors"],
    }


def _state(url: str) -> StateFrame:
    answer = httpx.get(f"{url.removesuffix('/v1')}/astraea/v1/state", trust_env=False, timeout=30.0)
    return StateFrame.model_validate_json(answer.raise_for_status().content)


def _work(before: StateFrame, after: StateFrame) -> dict[str, float]:
    """What the server did between the two: seconds of steps, and tokens."""

    def busy(frame: StateFrame) -> float:
        return frame.steps["steps"] * frame.steps["mean_ms"] / 1000

    return {
        "busy_s": busy(after) - busy(before),
        "kv_moves_s": after.steps["steps"] * after.steps["kv_moves_ms"] / 1000,
        "steps": after.steps["steps"] - before.steps["steps"],
        "prefilled": after.totals.prefilled_tokens - before.totals.prefilled_tokens,
        "cached": after.totals.cached_tokens - before.totals.cached_tokens,
        "decoded": after.totals.decoded_tokens - before.totals.decoded_tokens,
    }


def slower(speeds: Speeds, prefill: float, decode: float) -> Speeds:
    """The same shape, prefill and decode steps taking that many times as long."""
    return replace(
        speeds,
        prefill_base_s=speeds.prefill_base_s * prefill,
        prefill_token_s=speeds.prefill_token_s * prefill,
        prefill_pair_s=speeds.prefill_pair_s * prefill,
        step_base_s=speeds.step_base_s * decode,
        step_segment_s=speeds.step_segment_s * decode,
        step_token_s=speeds.step_token_s * decode,
    )


async def _observed(url: str, agents: Sequence[Agent], speeds: Speeds) -> tuple[Result, tuple[float, float]]:
    """A run, and how many times as long as `speeds` say prefill and decode steps took, geometric means."""
    samples: list[tuple[float, float]] = []

    async def watch() -> None:
        async with httpx.AsyncClient(timeout=30.0, trust_env=False) as http:
            while True:
                answer = await http.get(f"{url.removesuffix('/v1')}/astraea/v1/state")
                frame = StateFrame.model_validate_json(answer.raise_for_status().content)
                live = [slot.tokens for slot in frame.slots if slot.segment is not None]
                expected = speeds.decode_step(max(1, len(live)), sum(live))
                if live:
                    seen = frame.speed
                    samples.append(
                        (speeds.prefill_rate(0) / seen.prefill_tokens_s, seen.decode_step_s / expected)
                    )
                await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    try:
        result = await run(url, agents, headers="session")
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    prefill, decode = (statistics.geometric_mean(column) for column in zip(*samples, strict=True))
    return result, (prefill, decode)


async def _warm_up(url: str) -> None:
    async with open_client(url) as client:
        await complete(client, [{"role": "user", "content": "warm up"}], 4)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per run, and the median ratio of each policy."""
    lines = ["| seed | policy | real mean s | simulated | ratio | real p95 s | simulated |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        figures = [row["real_mean_s"], row["simulated_mean_s"], row["real_p95_s"], row["simulated_p95_s"]]
        mean, sim, p95, sim95 = (f"{figure:.1f}" for figure in figures)
        shown = f"{row['ratio']:.3f}"
        lines.append(f"| {row['seed']} | {row['policy']} | {mean} | {sim} | {shown} | {p95} | {sim95} |")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["policy"] == policy]
        lines.append(f"| median | {policy} | | | {statistics.median(ratios):.3f} | | |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--policies", default="fcfs,astraea_paper,astraea", help="default: %(default)s")
    add("--profile", default="smollm2-cpu", help="default: %(default)s")
    add("--slots", type=int, default=4, help="default: %(default)s")
    add("--ctx", type=int, default=8192, help="KV cells in total (default: %(default)s)")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--agents", type=int, default=12, help="default: %(default)s")
    add("--rate", type=float, default=0.25, help="arrivals per second (default: %(default)s)")
    add("--context-limit", type=int, default=2000, help="tokens of an agent (default: %(default)s)")
    add("--seed", type=int, default=1, help="of the first repeat, then one more each (default: %(default)s)")
    add("--repeats", type=int, default=3, help="seeds (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, or 1 when a server failed or an agent did."""
    args = _parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    failed = False
    try:
        with tempfile.TemporaryDirectory() as measured:
            os.environ["XDG_STATE_HOME"] = measured
            sys.stderr.write("calibrating\n")
            found = calibration(args)
            for seed in range(args.seed, args.seed + args.repeats):
                for policy in args.policies.split(","):
                    # A history of its own for each run: the simulated predictor knows nothing either.
                    with tempfile.TemporaryDirectory() as state:
                        shutil.copytree(measured, state, dirs_exist_ok=True)
                        os.environ["XDG_STATE_HOME"] = state
                        sys.stderr.write(f"seed {seed}, {policy}\n")
                        rows.append(compare(seed, policy, found, args))
                    if args.json is not None:
                        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    except (ServerError, subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"simulator_check: {error}\n")
        failed = True
    if rows:
        print(table(rows))
    return 1 if failed or any(row["errors"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
