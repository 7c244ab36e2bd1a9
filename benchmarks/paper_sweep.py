"""The sweep that chose the values which the Astraea paper does not print.

example:
  python benchmarks/paper_sweep.py --rates 2,3,5 --jobs 500

Simulates `astraea_paper` on the `infercept` workload with an 8B model on one A100, for every combination of
queue quotas, aging ratio, memory watermark and refilling, and prints the mean JCT relative to the engine
that drops KV at tool calls (fcfs).
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from astraea_local.bench.experiment import Setting, simulate
from astraea_local.bench.machine import a100_8b
from astraea_local.bench.workloads import infercept
from astraea_local.profile import SchedulerSettings

QUOTAS = ((128, 256, 512), (512, 1024, 2048), (2048, 4096, 8192), (1024,))
AGING = (4.0, 16.0, 64.0)
WATERMARKS = (0.5, 0.8, 0.95)


def mean_jct(policy: str, settings: SchedulerSettings, rate: float, args: argparse.Namespace) -> float:
    """Mean over jobs and seeds, seconds."""
    setting = Setting(policy, a100_8b(), settings)
    return statistics.fmean(
        job.jct_s
        for seed in range(1, args.seeds + 1)
        for job in simulate(setting, infercept(seed, jobs=args.jobs, rate=rate)).jobs
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table, the best combination first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rates", default="2,3,5", help="jobs per second (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    rates = [float(rate) for rate in args.rates.split(",")]
    baseline = {rate: mean_jct("fcfs", SchedulerSettings(), rate, args) for rate in rates}
    combinations = [(*c, True) for c in itertools.product(QUOTAS, AGING, WATERMARKS)]
    # To the letter a batch runs to its end; how the queues are cut hardly matters then.
    combinations += [(QUOTAS[1], 8.0, watermark, False) for watermark in WATERMARKS]
    rows: list[dict[str, Any]] = []
    for quotas, aging, watermark, refill in track(combinations, "simulating"):
        settings = SchedulerSettings(
            paper_quota_tokens=quotas, paper_aging_ratio=aging, paper_watermark=watermark, paper_refill=refill
        )
        ratios = [mean_jct("astraea_paper", settings, rate, args) / baseline[rate] for rate in rates]
        rows.append(
            {"quotas": quotas, "aging": aging, "watermark": watermark, "refill": refill, "ratios": ratios}
        )
    rows.sort(key=lambda row: statistics.fmean(row["ratios"]))
    print(f"| quotas | aging | watermark | refill | {' | '.join(f'{rate:g}/s' for rate in rates)} |")
    print("|---" * (4 + len(rates)) + "|")
    for row in rows:
        figures = " | ".join(f"{ratio:.3f}" for ratio in row["ratios"])
        shown = f"{row['quotas']} | {row['aging']:g} | {row['watermark']:g} | {row['refill']}"
        print(f"| {shown} | {figures} |")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
