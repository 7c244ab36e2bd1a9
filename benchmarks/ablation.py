"""What each point of the default policy buys: simulations with one of them taken away at a time.

example:
  python benchmarks/ablation.py --jobs 500 --seeds 3
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from astraea_local.bench.experiment import Setting, simulate
from astraea_local.bench.machine import a100_8b, smollm2_cpu
from astraea_local.bench.workloads import SimJob, coding, infercept, mixed
from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, work_s
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Job, Segment
from astraea_local.scheduler.policies.astraea import Astraea
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.speeds import Speeds


class FirstLevelOnly(Astraea):
    """Slots stay empty rather than being filled from lower queues."""

    first_level_only = True


class NoPreemption(Astraea):
    """What runs runs to its end."""

    preempts = False


class ReuseIgnored(Astraea):
    """The price counts all tokens, cached or not."""

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        blind = replace(segment, cached=0, computed=0, restore_s=0.0)
        return super().key(blind, job, now, at)


class CallLevel(Astraea):
    """The queue follows the tokens of the call alone."""

    def level(self, job: Job) -> int:
        return 0

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        level = sum(segment.received > threshold for threshold in self.settings.level_tokens)
        return replace(super().key(segment, job, now, at), level=level)


class NoAging(Astraea):
    """Nothing becomes overdue, and waiting counts for nothing."""

    def overdue_s(self, segment: Segment, job: Job, at: Conditions) -> float:
        return float("inf")

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        key = super().key(segment, job, now, at)
        return Key(key.level, key.cost, 1.0)


class FullWidth(Astraea):
    """All slots, always."""

    def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
        return slots


class CallOnly(Astraea):
    """The price is that of the call, whatever its job still needs."""

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        return replace(super().key(segment, job, now, at), cost=work_s(segment, at))


class Points(Predictor):
    """Means instead of distributions: nothing is revised by what has passed."""

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution:
        return Distribution.of([super().output(job, prompt_tokens, max_output).mean])

    def wait(self, job: Job) -> Distribution:
        return Distribution.of([super().wait(job).mean])


@dataclass(frozen=True, slots=True)
class Variant:
    """The default policy, changed."""

    name: str
    policy: type[Astraea] = Astraea
    predictor: type[Predictor] = Predictor


VARIANTS = (
    Variant("all points"),
    Variant("1 work-conserving: off", FirstLevelOnly),
    Variant("2 preemption at token boundaries: off", NoPreemption),
    Variant("3 reuse is part of being short: off", ReuseIgnored),
    Variant("4 queue of the job, not of the call: off", CallLevel),
    Variant("5 aging and overdue: off", NoAging),
    Variant("6 distributions, not points: off", predictor=Points),
    Variant("7 width as a decision: off", FullWidth),
    Variant("remaining work of the job: off", CallOnly),
)


def workloads(args: argparse.Namespace) -> dict[str, tuple[Setting, Callable[[int], Sequence[SimJob]]]]:
    """Name -> setting and jobs by seed."""
    gpu, cpu = Setting("astraea", a100_8b()), Setting("astraea", smollm2_cpu())
    few = args.jobs // 5
    return {
        "infercept 5/s, A100": (gpu, lambda seed: infercept(seed, jobs=args.jobs, rate=5.0)),
        "mixed 0.6/s, A100": (gpu, lambda seed: mixed(seed, jobs=few, rate=0.6)),
        "coding 0.2/s, 2 CPU cores": (cpu, lambda seed: coding(seed, jobs=few, rate=0.2, context_limit=2000)),
    }


def measure(
    variant: Variant, setting: Setting, jobs: Callable[[int], Sequence[SimJob]], seeds: int
) -> dict[str, float]:
    """Median over seeds of the mean and of the p95 JCT, seconds."""
    means, tails = [], []
    for seed in range(1, seeds + 1):
        predictor = variant.predictor(SchedulerSettings().predicted_output_tokens)
        result = simulate(setting, jobs(seed), make_policy=variant.policy, predictor=predictor)
        times = [job.jct_s for job in result.jobs]
        means.append(statistics.fmean(times))
        tails.append(float(np.percentile(times, 95)))
    return {"mean": statistics.median(means), "p95": statistics.median(tails)}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table: mean and p95 JCT relative to the whole policy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    chosen = workloads(args)
    figures: dict[str, dict[str, Any]] = {variant.name: {} for variant in VARIANTS}
    for variant in track(VARIANTS, "simulating"):
        for name, (setting, jobs) in chosen.items():
            figures[variant.name][name] = measure(variant, setting, jobs, args.seeds)
    whole = figures[VARIANTS[0].name]
    print(f"| mean JCT (p95) | {' | '.join(chosen)} |")
    print("|---" * (1 + len(chosen)) + "|")
    for variant in VARIANTS:
        cells = []
        for name in chosen:
            mean, p95 = (figures[variant.name][name][what] for what in ("mean", "p95"))
            if variant is VARIANTS[0]:
                cells.append(f"{mean:.1f} s ({p95:.1f} s)")
            else:
                cells.append(f"{mean / whole[name]['mean']:.3f} ({p95 / whole[name]['p95']:.3f})")
        print(f"| {variant.name} | {' | '.join(cells)} |")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
