"""`astraea-local bench`: what the benchmarks offer on the command line."""

import importlib.util
import math
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from astraea_local import profile as profiles
from astraea_local.calibration import Calibration
from astraea_local.profile import Profile, ProfileError, SchedulerSettings

if TYPE_CHECKING:
    from astraea_local.bench.machine import Machine
    from astraea_local.bench.report import Grid
    from astraea_local.bench.sweep import Results, Sweep

_T = TypeVar("_T", int, float)

bench_app = typer.Typer(
    help="Simulates scheduling policies.",
    epilog="Example: astraea-local bench sim --policies astraea,fcfs --rates 1,2,3",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MOST_NOISE = 5.0
_NOISES = f"sigmas of 0 to {_MOST_NOISE:g}, as in 0,0.5,1"

_out = Console(markup=False, emoji=False)
_err = Console(stderr=True, markup=False, emoji=False, highlight=False)


@bench_app.command(epilog="Example: astraea-local bench sim --policies astraea,fcfs,fcfs+lru --rates 1,2,3")
def sim(
    workload: Annotated[
        str | None, typer.Option(help="infercept, coding or mixed.", show_default="infercept")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Recorded conversations (JSON lines) instead.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="a100-8b or smollm2-cpu.", show_default="a100-8b")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="The machine that `calibrate --json` measured instead.")
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Names, or policy+retention: fcfs,fcfs+lru.", show_default="all")
    ] = None,
    rates: Annotated[str, typer.Option(help="Arrivals, jobs per second.")] = "1,2,3",
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of each simulation.")] = 1000,
    seeds: Annotated[str, typer.Option(help="Each makes another workload.")] = "1",
    noise: Annotated[str, typer.Option(help="Log-normal sigmas of the errors of predictions.")] = "0",
    heavy_tail: Annotated[
        str | None, typer.Option(metavar="SHARE:FACTOR", help="Makes that share of the tool waits long.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of [scheduler]; repeat.")
    ] = None,
    context_limit: Annotated[int | None, typer.Option(min=400, help="Most tokens of a job.")] = None,
    cdf_rate: Annotated[
        float | None,
        typer.Option(help="The rate that plots of one rate show.", show_default="the middle one"),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Simulations at the same time.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md and plots.")] = Path(
        "bench-sim"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Compares policies on a simulated machine.

    The scheduler is the one that serves; only the time is simulated.
    """
    from astraea_local.bench import report
    from astraea_local.bench.sweep import Sweep

    settings = _settings(changes or [])
    sweep = Sweep(
        workload=_workload(workload, trace),
        trace=trace,
        machine=_machine(machine, calibration, settings),
        policies=_policies(policies),
        rates=_numbers("--rates", rates, float, lambda v: 0 < v < math.inf, "rates above 0, as in 1,2,3"),
        seeds=_numbers("--seeds", seeds, int, lambda _v: True, "whole numbers, as in 1,2,3"),
        noises=_numbers("--noise", noise, float, lambda v: 0 <= v <= _MOST_NOISE, _NOISES),
        jobs=jobs,
        context_limit=context_limit,
        heavy_tail=None if heavy_tail is None else _heavy_tail(heavy_tail),
        scheduler=SchedulerSettings.model_validate(settings),
    )
    shown = sweep.rates[len(sweep.rates) // 2] if cdf_rate is None else cdf_rate
    if shown not in sweep.rates:
        _fail(f"--cdf-rate {shown:g}: must be one of --rates {rates}")
    if importlib.util.find_spec("matplotlib") is None:
        _fail("plots need matplotlib: pip install 'astraea-local[bench]'")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"--out {out}: cannot be made: {error.strerror}")
    try:
        results = _simulated(sweep, processes)
        text = results.model_dump_json(indent=2) + "\n"
        page = report.markdown(results, shown)
        plots = report.plots(results, shown)
        report.save(out, {"results.json": text.encode(), "results.md": page.encode(), **plots})
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except OSError as error:
        _fail(f"--out {out}: cannot be written: {error.strerror}")
    if as_json:
        typer.echo(text, nl=False)
        return
    for grid in report.tables(results, shown):
        _out.print(_table(grid), "")
    _out.print(f"stored in {out}", soft_wrap=True)


def _simulated(sweep: "Sweep", processes: int) -> "Results":
    from astraea_local.bench.sweep import run
    from astraea_local.bench.workloads import WorkloadError

    with _progress() as progress:
        bar = progress.add_task("", total=1.0)
        try:
            return run(
                sweep,
                processes=processes,
                on_progress=lambda share, name: progress.update(bar, completed=share, description=name),
            )
        except WorkloadError as error:
            progress.stop()
            _fail(str(error))


def _workload(name: str | None, trace: Path | None) -> str:
    from astraea_local.bench.trace import read
    from astraea_local.bench.workloads import WORKLOADS, WorkloadError

    if trace is None:
        name = name or "infercept"
        if name not in WORKLOADS:
            _fail(f"--workload {name!r}: choose one of {', '.join(WORKLOADS)}, or give a --trace")
        return name
    if name is not None:
        _fail("--workload and --trace exclude each other")
    try:
        read(trace)
    except WorkloadError as error:
        _fail(f"--trace {error}")
    return "trace"


def _machine(name: str | None, calibration: Path | None, settings: dict[str, Any]) -> "Machine":
    from astraea_local.bench.machine import MACHINES, calibrated

    if calibration is None:
        name = name or "a100-8b"
        if name not in MACHINES:
            _fail(f"--machine {name!r}: choose one of {', '.join(MACHINES)}, or give a --calibration")
        found = MACHINES[name]()
    elif name is not None:
        _fail("--machine and --calibration exclude each other")
    else:
        found = calibrated(_calibration(calibration))
    # A setting of the engine rather than of its scheduler.
    if "max_step_ms" in settings:
        found = replace(found, max_step_s=settings["max_step_ms"] / 1000)
    return found


def _calibration(path: Path) -> Calibration:
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        _fail(f"--calibration {path}: cannot be read: {error.strerror}")
    except ValidationError:
        _fail(
            f"--calibration {path}: not a calibration of this version: "
            "write one with `astraea-local calibrate --json`"
        )


def _policies(text: str | None) -> tuple[str, ...]:
    from astraea_local.bench.experiment import POLICY_NAMES
    from astraea_local.bench.sweep import named_policy

    names = POLICY_NAMES if text is None else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        try:
            named_policy(name)
        except ValueError as error:
            _fail(f"--policies: {error}")
    return names


def _settings(changes: Sequence[str]) -> dict[str, Any]:
    """The fields of `SchedulerSettings` that `--set` gives, checked."""
    given: dict[str, Any] = {}
    for change in changes:
        field, equals, text = change.partition("=")
        try:
            (given[field],) = tomllib.loads(f"value = {text}").values()
        except ValueError:
            equals = ""
        if not equals:
            _fail(f"--set {change!r}: expected FIELD=VALUE as in a profile, for example aging_ratio=4.0")
    if "policy" in given:
        _fail("--set policy: give --policies instead")
    try:
        profiles.override(Profile(), {f"scheduler.{field}": value for field, value in given.items()})
    except ProfileError as error:
        _fail(f"--set: {error}")
    return given


def _numbers(
    option: str, text: str, kind: Callable[[str], _T], fits: Callable[[_T], bool], what: str
) -> tuple[_T, ...]:
    """The numbers in ascending order, none twice."""
    try:
        found = tuple(sorted({kind(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(map(fits, found)):
        _fail(f"{option} {text!r}: expected {what}")
    return found


def _heavy_tail(text: str) -> tuple[float, float]:
    try:
        share, factor = map(float, text.split(":"))
    except ValueError:
        share = factor = math.nan
    if not (0 <= share <= 1 and 0 < factor < math.inf):
        _fail(f"--heavy-tail {text!r}: expected a share (0..1) and a factor above 0, as in 0.05:10")
    return share, factor


def _table(grid: "Grid") -> Table:
    table = Table(title=grid.title, title_justify="left", box=None)
    for place, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*row)
    return table


def _progress() -> Progress:
    return Progress(
        TextColumn("simulating"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
    )


def _fail(message: str) -> NoReturn:
    print(f"astraea-local: {message}", file=sys.stderr)
    raise typer.Exit(2)
