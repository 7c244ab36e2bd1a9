"""What each point of the default policy buys, simulated with one of them taken away at a time, and what it
could gain by knowing more: `--knowledge`. `--width` varies how much its width trusts predictions.

examples:
  python benchmarks/ablation.py --jobs 500 --seeds 3
  python benchmarks/ablation.py --knowledge --workloads infercept --rate 7 --jobs 1000 --seeds 4
  python benchmarks/ablation.py --width --seeds 30
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from astraea_local.bench.experiment import Setting, simulate
from astraea_local.bench.machine import a100_8b, smollm2_cpu
from astraea_local.bench.oracle import Truth
from astraea_local.bench.predictions import TrueCalls, TrueCallsAndLengths, TrueLengths
from astraea_local.bench.workloads import SimJob, coding, infercept, mixed
from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.cost import Conditions, work_s
from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Job, Rest, Segment
from astraea_local.scheduler.policies import Policy
from astraea_local.scheduler.policies.astraea import Astraea
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.queues import Key
from astraea_local.scheduler.speeds import Speeds
from astraea_local.scheduler.width import best_width


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


def trusting(known: float) -> type[Astraea]:
    """The policy with so much of the gain of known sizes in its choice of a width."""

    class Trusting(Astraea):
        def width(self, speeds: Speeds, slots: int, ready: int, context: float) -> int:
            return best_width(speeds, slots, ready, context, known=known)

    return Trusting


class CallOnly(Astraea):
    """The price is that of the call, whatever its job still needs."""

    def key(self, segment: Segment, job: Job, now: float, at: Conditions) -> Key:
        return replace(super().key(segment, job, now, at), cost=work_s(segment, at))


class MeanCalls(Predictor):
    """Calls to come count by their mean, as they do where all jobs are alike."""

    def rest(self, job: Job) -> Rest:
        rest = super().rest(job)
        return replace(rest, segments=rest.expected)


class EffortOnly(Predictor):
    """Calls to come count by Gittins' index alone."""

    def rest(self, job: Job) -> Rest:
        return replace(super().rest(job), segments=self.calls.effort(job.kind, job.segments + 1))


class Points(Predictor):
    """Means instead of distributions: nothing is revised by what has passed."""

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution:
        return Distribution.of([super().output(job, prompt_tokens, max_output).mean])

    def wait(self, job: Job) -> Distribution:
        return Distribution.of([super().wait(job).mean])


Truths = Mapping[str, Truth]


def learns(_truths: Truths) -> Predictor:
    """Predictions as they are made on a server."""
    return Predictor(SchedulerSettings().predicted_output_tokens)


@dataclass(frozen=True, slots=True)
class Variant:
    """The default policy, changed."""

    name: str
    policy: type[Policy] = Astraea
    predictor: Callable[[Truths], Predictor] = learns
    named: str = "astraea"
    """Another policy instead, which brings its own predictor."""


VARIANTS = (
    Variant("all points"),
    Variant("1 work-conserving: off", FirstLevelOnly),
    Variant("2 preemption at token boundaries: off", NoPreemption),
    Variant("3 reuse is part of being short: off", ReuseIgnored),
    Variant("4 queue of the job, not of the call: off", CallLevel),
    Variant("5 aging and overdue: off", NoAging),
    Variant("6 distributions, not points: off", predictor=lambda _truths: Points()),
    Variant("7 width as a decision: off", FullWidth),
    Variant("remaining work of the job: off", CallOnly),
    Variant("calls to come: their mean alone", predictor=lambda _truths: MeanCalls()),
    Variant("calls to come: Gittins' index alone", predictor=lambda _truths: EffortOnly()),
)
KNOWLEDGE = (
    Variant("nothing but what it saw"),
    Variant("output lengths", predictor=TrueLengths),
    Variant("number of calls to come", predictor=TrueCalls),
    Variant("both", predictor=TrueCallsAndLengths),
    Variant("everything: the oracle", named="oracle"),
)
WIDTHS = tuple(Variant(f"known sizes count {known:g}", trusting(known)) for known in (0.7, 0.3, 0.5, 1, 2))


def _burst(jobs: int, rate: float) -> Callable[[int], Sequence[SimJob]]:
    return lambda seed: coding(seed, jobs=jobs, rate=rate, context_limit=2000)


def workloads(args: argparse.Namespace) -> dict[str, tuple[Setting, Callable[[int], Sequence[SimJob]]]]:
    """Name -> setting and jobs by seed."""
    gpu, cpu = Setting("astraea", a100_8b()), Setting("astraea", smollm2_cpu())
    few = args.jobs // 5
    if args.width:
        return {
            f"{jobs} coding agents, {rate:g}/s, 2 CPU cores": (cpu, _burst(jobs, rate))
            for jobs, rate in ((12, 0.25), (12, 0.5), (24, 0.5))
        }
    return {
        f"infercept {args.rate:g}/s, A100": (
            gpu,
            lambda seed: infercept(seed, jobs=args.jobs, rate=args.rate),
        ),
        "mixed 0.6/s, A100": (gpu, lambda seed: mixed(seed, jobs=few, rate=0.6)),
        "coding 0.2/s, 2 CPU cores": (cpu, lambda seed: coding(seed, jobs=few, rate=0.2, context_limit=2000)),
    }


def measure(
    variant: Variant, setting: Setting, jobs: Callable[[int], Sequence[SimJob]], seeds: int
) -> dict[str, float]:
    """Median over seeds of the mean and of the p95 JCT, seconds."""
    means, tails = [], []
    for seed in range(1, seeds + 1):
        if variant.named == setting.policy:
            result = simulate(
                setting, jobs(seed), make_policy=variant.policy, make_predictor=variant.predictor
            )
        else:
            result = simulate(replace(setting, policy=variant.named), jobs(seed))
        times = [job.jct_s for job in result.jobs]
        means.append(statistics.fmean(times))
        tails.append(float(np.percentile(times, 95)))
    return {"mean": statistics.median(means), "p95": statistics.median(tails)}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table: mean and p95 JCT relative to the first variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--rate", type=float, default=5.0, help="jobs per second of infercept (default: %(default)s)"
    )
    parser.add_argument(
        "--workloads", nargs="+", choices=("infercept", "mixed", "coding"), help="default: all three"
    )
    parser.add_argument("--knowledge", action="store_true", help="what it could gain by knowing more")
    parser.add_argument("--width", action="store_true", help="bursts of few agents, by other widths")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    if args.width and (args.knowledge or args.workloads):
        parser.error("--width has workloads of its own and goes without --knowledge and --workloads")
    wanted = tuple(args.workloads or ("",))
    chosen = {name: what for name, what in workloads(args).items() if name.startswith(wanted)}
    variants = KNOWLEDGE if args.knowledge else WIDTHS if args.width else VARIANTS
    figures: dict[str, dict[str, Any]] = {variant.name: {} for variant in variants}
    for variant in track(variants, "simulating"):
        for name, (setting, jobs) in chosen.items():
            figures[variant.name][name] = measure(variant, setting, jobs, args.seeds)
    whole = figures[variants[0].name]
    print(f"| mean JCT (p95) | {' | '.join(chosen)} |")
    print("|---" * (1 + len(chosen)) + "|")
    for variant in variants:
        cells = []
        for name in chosen:
            mean, p95 = (figures[variant.name][name][what] for what in ("mean", "p95"))
            if variant is variants[0]:
                cells.append(f"{mean:.1f} s ({p95:.1f} s)")
            else:
                cells.append(f"{mean / whole[name]['mean']:.3f} ({p95 / whole[name]['p95']:.3f})")
        print(f"| {variant.name} | {' | '.join(cells)} |")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
