"""What the scheduler itself costs: one plan and the events between plans, as the number of waiting grows.

Every slot is taken. In each round one segment ends and another comes, and the KV of one that waits is found
or lost; a plan fills the free slot; every running one decodes a token, and a second plan looks for a victim.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.policies import POLICIES
from astraea_local.scheduler.scheduler import NewSegment, Plan, Scheduler, View
from astraea_local.scheduler.speeds import Speeds

_EXAMPLE = """example:
  python benchmarks/scheduler_cost.py --policy astraea fcfs --repeats 500 --json cost.json
"""
# A GPU: batching is nearly free, so that all slots are used.
_SPEEDS = Speeds(prefill_token_s=1e-4, step_base_s=0.01, step_segment_s=1e-4, step_token_s=1e-8)
_KINDS = ("", "coder", "researcher", "reviewer", "tester")


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds, median and 99th percentile; `renew_ms` is all keys made anew, once."""

    policy: str
    waiting: int
    plan: tuple[float, float]
    """With a free slot."""
    plan_full: tuple[float, float]
    """Without."""
    submit_finish: tuple[float, float]
    set_cached: tuple[float, float]
    renew_ms: float


class Load:
    """A scheduler whose slots are full and whose queue keeps its length."""

    def __init__(self, policy: str, waiting: int, slots: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(SchedulerSettings.model_validate({"policy": policy}), slots)
        self.now = 0.0
        self._ids = 0
        self._waiting: list[int] = []
        self._view = View(_SPEEDS)
        for _ in range(waiting + slots):
            self.now += self.random.expovariate(100.0)
            self.submit(self.new())
        while len(self.scheduler.running) < slots:
            self.execute(self.plan())
        self.plan()  # makes the keys with what is known of speeds and queue by now

    def new(self) -> NewSegment:
        """A call of one of as many jobs as there are segments, of an agent's size."""
        self._ids += 1
        prompt = max(16, int(self.random.lognormvariate(7.5, 1.0)))
        return NewSegment(
            id=self._ids,
            job=f"job-{self._ids}",
            prompt_tokens=prompt,
            max_output=1024,
            cached=self.random.randrange(prompt),
            kind=self.random.choice(_KINDS),
            tool="shell:pytest",
        )

    def submit(self, new: NewSegment) -> None:
        self.scheduler.submit(self.now, new)
        self._waiting.append(new.id)

    def plan(self) -> Plan:
        return self.scheduler.plan(self.now, self._view)

    def execute(self, plan: Plan) -> None:
        for decision in plan.preempt:
            self.scheduler.stopped(
                self.now, decision.segment, self.scheduler.segments[decision.segment].computed
            )
            self._waiting.append(decision.segment)
        for decision in plan.admit:
            self.scheduler.started(
                self.now, decision.segment, self.scheduler.segments[decision.segment].cached
            )
        for segment in self.scheduler.running.values():
            self.scheduler.advance(segment.id, computed=segment.uncached, output=1)
        self.now += 0.02

    def of_waiting(self) -> int:
        while True:
            index = self.random.randrange(len(self._waiting))
            if self._waiting[index] in self.scheduler.queue:
                return self._waiting[index]
            self._waiting[index] = self._waiting[-1]
            self._waiting.pop()


def measure(policy: str, waiting: int, slots: int, repeats: int, seed: int = 1) -> Cost:
    """Costs with that many waiting segments."""
    load = Load(policy, waiting, slots, seed)
    events, cached, plans, full = [], [], [], []
    for _ in range(repeats):
        new = load.new()
        ended = load.random.choice(list(load.scheduler.running))
        began = time.perf_counter()
        load.scheduler.finish(load.now, ended)
        load.submit(new)
        events.append(time.perf_counter() - began)

        number = load.of_waiting()
        tokens = load.random.randrange(load.scheduler.segments[number].context)
        began = time.perf_counter()
        load.scheduler.set_cached(load.now, number, tokens, 0.0)
        cached.append(time.perf_counter() - began)

        began = time.perf_counter()
        plan = load.plan()
        plans.append(time.perf_counter() - began)
        load.execute(plan)

        began = time.perf_counter()
        plan = load.plan()
        full.append(time.perf_counter() - began)
        load.execute(plan)
    began = time.perf_counter()
    load.scheduler.set_policy(load.now, policy)
    renew_ms = 1000 * (time.perf_counter() - began)
    return Cost(
        policy, waiting, _summary(plans), _summary(full), _summary(events), _summary(cached), renew_ms
    )


def _summary(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return 1e6 * statistics.median(ordered), 1e6 * ordered[int(0.99 * (len(ordered) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", nargs="+", choices=list(POLICIES), default=["astraea"])
    parser.add_argument("--waiting", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if min(*arguments.waiting, arguments.slots, arguments.repeats) < 1:
        parser.error("--waiting, --slots and --repeats must be at least 1")

    costs: list[Cost] = []
    columns = " ".join(f"{name:>16}" for name in ("plan", "plan, full", "submit+finish", "set_cached"))
    print(f"{'policy':14} {'waiting':>8} {columns} {'renew':>8}")
    print(f"{'':23} {'median / p99, µs':>67} {'ms':>8}")
    for policy in arguments.policy:
        of_policy = [
            measure(policy, n, arguments.slots, arguments.repeats) for n in sorted(arguments.waiting)
        ]
        for cost in of_policy:
            pairs = (cost.plan, cost.plan_full, cost.submit_finish, cost.set_cached)
            figures = " ".join(f"{median:>8.0f} / {p99:>5.0f}" for median, p99 in pairs)
            print(f"{policy:14} {cost.waiting:>8} {figures} {cost.renew_ms:>8.1f}")
        first, last = of_policy[0], of_policy[-1]
        if first is not last:
            more, growth = last.waiting / first.waiting, last.plan[0] / first.plan[0]
            print(f"{'':14} {more:.0f} times as many wait, a plan costs {growth:.1f} times as much")
        costs += of_policy
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(c) for c in costs], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
