"""Sweeps: policies x rates x seeds x errors of prediction over a workload, each combination a simulation."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from astraea_local import __version__
from astraea_local.bench.experiment import POLICY_NAMES, RETENTION_NAMES, Setting, retention_of, simulate
from astraea_local.bench.machine import Machine
from astraea_local.bench.simulator import SimResult
from astraea_local.bench.workloads import SimJob, WorkloadError, heavy_tail, make, trace
from astraea_local.profile import SchedulerSettings

Report = Callable[[float, str], None]
"""Gets the finished share of all work, 0..1, and the name of a simulation that runs."""

# How often the finished jobs of other processes are counted.
_POLL_S = 0.2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Sweep(_Record):
    """What is simulated: every combination of policies, rates, seeds and noises, none of them twice."""

    workload: str
    """A name of `workloads.WORKLOADS`; "trace" for a file."""
    trace: Path | None = None
    machine: Machine
    policies: tuple[str, ...]
    """Names as `named_policy` reads them."""
    rates: tuple[float, ...]
    """Jobs per second."""
    seeds: tuple[int, ...]
    noises: tuple[float, ...] = (0.0,)
    """Sigmas of the log-normal errors of predictions."""
    jobs: int
    """Jobs of each simulation."""
    context_limit: int | None = None
    """Tokens; None = the workload's own."""
    heavy_tail: tuple[float, float] | None = None
    """Share of the tool waits that are replaced by heavy-tailed ones, and their factor."""
    scheduler: SchedulerSettings = SchedulerSettings()


class Kind(_Record):
    """The jobs of one kind; seconds."""

    jobs: int
    mean_s: float
    p95_s: float


class Run(_Record):
    """One simulation; JCT is a job's time from its arrival to its end, tool waits included."""

    policy: str
    """As it was asked for."""
    retention: str
    rate: float
    seed: int
    noise: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    quantiles_s: tuple[float, ...]
    """JCT within which 0 %, 1 % ... 100 % of the jobs end."""
    kinds: dict[str, Kind]
    """JCT by kind of job."""
    prefilled: int
    """Prompt tokens computed."""
    recomputed_share: float
    """Share of them (0..1) that had been computed before."""
    decoded: int
    """Tokens generated."""
    parks: int
    restores: int
    drops: int
    moved_s: float
    """Time spent on moving KV."""
    switches: int
    """Preemptions."""
    utilization: float
    """Share of the time (0..1) in which the machine did something."""
    makespan_s: float
    took_s: float
    """Wall time of the simulation itself."""


class Results(_Record):
    """A whole sweep."""

    version: Literal[1] = 1
    """Of this form."""
    package: str = __version__
    """Of the program that made it."""
    sweep: Sweep
    runs: tuple[Run, ...]

    def of(self, policy: str, rate: float, noise: float) -> list[Run]:
        """The runs of that combination, one for each seed."""
        return [r for r in self.runs if (r.policy, r.rate, r.noise) == (policy, rate, noise)]


@dataclass(frozen=True, slots=True)
class _Task:
    """One combination."""

    noise: float
    rate: float
    seed: int
    policy: str

    @property
    def name(self) -> str:
        error = f", noise {self.noise:g}" if self.noise else ""
        return f"{self.policy} at {self.rate:g} jobs/s, seed {self.seed}{error}"


class _Stopped(Exception):
    """The sweep was given up while this simulation ran."""


def named_policy(name: str) -> tuple[str, str]:
    """Policy and KV retention of `policy` or `policy+retention`. Raises `ValueError`."""
    policy, plus, retention = name.partition("+")
    if policy not in POLICY_NAMES:
        raise ValueError(f"no policy {policy!r}: choose among {', '.join(POLICY_NAMES)}")
    if plus and retention not in RETENTION_NAMES:
        raise ValueError(f"no retention {retention!r} in {name!r}: choose among {', '.join(RETENTION_NAMES)}")
    return policy, retention or retention_of(policy)


def run(sweep: Sweep, *, processes: int = 1, on_progress: Report = lambda _share, _name: None) -> Results:
    """Simulates all of it; the results are the same with any number of processes, `took_s` excepted.

    To be called in the main thread when there are several. Raises `WorkloadError` for a workload that cannot
    be made or does not fit the machine.
    """
    combined = product(sweep.noises, sweep.rates, sweep.seeds, sweep.policies)
    tasks = [_Task(*each) for each in combined]
    if processes == 1:
        runs = _one_by_one(sweep, tasks, on_progress)
    else:
        runs = _in_parallel(sweep, tasks, on_progress, processes)
    return Results(sweep=sweep, runs=tuple(runs))


def _one_by_one(sweep: Sweep, tasks: Sequence[_Task], report: Report) -> list[Run]:
    runs = []
    for index, task in enumerate(tasks):

        def count(done: int, index: int = index, task: _Task = task) -> None:
            report((index + done / sweep.jobs) / len(tasks), task.name)

        count(0)
        runs.append(_simulate(sweep, task, count))
        count(sweep.jobs)
    return runs


def _in_parallel(sweep: Sweep, tasks: Sequence[_Task], report: Report, processes: int) -> list[Run]:
    context = multiprocessing.get_context("spawn")
    # Finished jobs of each simulation; behind them, whether all shall stop.
    counts = context.Array("q", len(tasks) + 1, lock=False)
    with ProcessPoolExecutor(processes, context, _enter, (counts,)) as pool:
        # Ctrl-C reaches the workers too: they inherit that it is ignored, and are told by `counts`.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            futures = [pool.submit(_work, sweep, index, task) for index, task in enumerate(tasks)]
        finally:
            signal.signal(signal.SIGINT, handler)
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
                for future in done:
                    future.result()
                first = next((i for i, future in enumerate(futures) if future in pending), -1)
                report(sum(counts[:-1]) / sweep.jobs / len(tasks), tasks[first].name)
        except BaseException:
            counts[-1] = 1
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


_counts: Any = None
"""In a worker process: the array that it shares with all others."""


def _enter(counts: Any) -> None:
    global _counts
    _counts = counts


def _work(sweep: Sweep, index: int, task: _Task) -> Run:
    def count(done: int) -> None:
        if _counts[-1]:
            raise _Stopped
        _counts[index] = done

    count(0)
    made = _simulate(sweep, task, count)
    _counts[index] = sweep.jobs
    return made


def _simulate(sweep: Sweep, task: _Task, on_progress: Callable[[int], None]) -> Run:
    policy, retention = named_policy(task.policy)
    jobs = _jobs(sweep, task)
    setting = Setting(policy, sweep.machine, sweep.scheduler, retention, task.noise, seed=task.seed)
    begun = time.perf_counter()
    result = simulate(setting, jobs, on_progress)
    return _summary(task, retention, result, time.perf_counter() - begun)


def _jobs(sweep: Sweep, task: _Task) -> tuple[SimJob, ...]:
    if sweep.trace is None:
        made = make(
            sweep.workload, task.seed, jobs=sweep.jobs, rate=task.rate, context_limit=sweep.context_limit
        )
    elif sweep.context_limit is None:
        made = trace(sweep.trace, task.seed, jobs=sweep.jobs, rate=task.rate)
    else:
        made = trace(
            sweep.trace, task.seed, jobs=sweep.jobs, rate=task.rate, context_limit=sweep.context_limit
        )
    longest, room = max(job.context_tokens for job in made), sweep.machine.job_context
    if longest > room:
        raise WorkloadError(
            f"a job of {longest} tokens does not fit into {sweep.machine.name}: "
            f"give --context-limit {room} or less"
        )
    return made if sweep.heavy_tail is None else heavy_tail(made, task.seed, *sweep.heavy_tail)


def _summary(task: _Task, retention: str, result: SimResult, took_s: float) -> Run:
    by_kind: dict[str, list[float]] = {}
    for job in result.jobs:
        by_kind.setdefault(job.kind, []).append(job.jct_s)
    quantiles = _quantiles([job.jct_s for job in result.jobs])
    return Run(
        policy=task.policy,
        retention=retention,
        rate=task.rate,
        seed=task.seed,
        noise=task.noise,
        mean_s=fmean(job.jct_s for job in result.jobs),
        p50_s=quantiles[50],
        p95_s=quantiles[95],
        p99_s=quantiles[99],
        max_s=quantiles[100],
        quantiles_s=quantiles,
        kinds={
            kind: Kind(jobs=len(times), mean_s=fmean(times), p95_s=_quantiles(times)[95])
            for kind, times in sorted(by_kind.items())
        },
        prefilled=result.prefilled,
        recomputed_share=result.recomputed / result.prefilled,
        decoded=result.decoded,
        parks=result.kv.parks,
        restores=result.kv.restores,
        drops=result.kv.drops,
        moved_s=result.kv.moved_s,
        switches=sum(job.switches for job in result.jobs),
        utilization=result.busy_s / result.makespan_s,
        makespan_s=result.makespan_s,
        took_s=took_s,
    )


def _quantiles(times: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.quantile(times, np.linspace(0.0, 1.0, 101)).tolist())
