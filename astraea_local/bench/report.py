"""What a sweep found: tables, Markdown and plots, written so that no file is ever half there.

Figures are medians over the seeds; ratios are taken between simulations of the same seed first.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from astraea_local.bench.sweep import Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Value = Callable[[Run], float]

# Paul Tol's "muted" scheme: colours that stay apart in all common forms of colour blindness.
_COLOURS = ("#332288", "#cc6677", "#117733", "#88ccee", "#aa4499", "#999933", "#882255", "#44aa99", "#ddcc77")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
_WIDTH_IN = 8.0
_HEIGHT_IN = 4.5
# 8 inches are 1,280 pixels: sharp at the width of a README on any screen.
_DPI = 160
# Times that differ by more than this factor are drawn on a logarithmic axis.
_WIDE = 20.0
# Kinds of jobs beside each other.
_PANELS = 3
_BASELINES = ("fcfs", "oracle")


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(results: Results, rate: float) -> list[Grid]:
    """All tables; the one of what the machine did is about `rate`."""
    return [grid for noise in results.sweep.noises for grid in _tables_at(results, rate, noise)]


def markdown(results: Results, rate: float) -> str:
    """The tables under a heading that says what was simulated."""
    sweep = results.sweep
    changed = sweep.scheduler.model_dump(exclude_defaults=True)
    setting = [
        f"{sweep.jobs:,} jobs in each simulation",
        _listed("seed", sweep.seeds) + (" (medians over them)" if len(sweep.seeds) > 1 else ""),
        *([f"contexts of at most {sweep.context_limit:,} tokens"] if sweep.context_limit is not None else []),
        *([f"heavy tails {sweep.heavy_tail[0]:g}:{sweep.heavy_tail[1]:g}"] if sweep.heavy_tail else []),
        *(f"{field} = {value}" for field, value in changed.items()),
        f"astraea-local {results.package}",
    ]
    source = sweep.workload if sweep.trace is None else f"{sweep.workload} {sweep.trace.name}"
    lines = [f"# Simulation of {source} on {sweep.machine.name}", "", "; ".join(setting) + "."]
    for grid in tables(results, rate):
        lines += ["", f"## {grid.title}", "", _row(grid.columns)]
        lines.append(_row(["---"] + ["---:"] * (len(grid.columns) - 1)))
        lines += map(_row, grid.rows)
    return "\n".join(lines) + "\n"


def plots(results: Results, rate: float) -> dict[str, bytes]:
    """PNG files by name; those that show one rate show `rate`. Raises `ImportError` without matplotlib."""
    made = {
        "jct_vs_rate.png": _jct_vs_rate(results),
        "jct_cdf.png": _jct_cdf(results, rate),
        "jct_by_kind.png": _jct_by_kind(results, rate),
    }
    if len(results.sweep.noises) > 1:
        made["noise.png"] = _noise(results, rate)
    return {name: _png(figure) for name, figure in made.items()}


def save(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes the files, each at once. Raises `OSError`."""
    for name, content in contents.items():
        part = folder / f".{name}.part"
        try:
            part.write_bytes(content)
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)


# -- tables ----------------------------------------------------------------------------------------


def _tables_at(results: Results, rate: float, noise: float) -> Iterator[Grid]:
    sweep = results.sweep
    suffix = f", noise {noise:g}" if len(sweep.noises) > 1 or noise else ""

    def grid(title: str, cell: Callable[[str, float], str]) -> Grid:
        rows = tuple((policy, *(cell(policy, rate) for rate in sweep.rates)) for policy in sweep.policies)
        return Grid(title + suffix, ("policy", *(f"{rate:g} jobs/s" for rate in sweep.rates)), rows)

    def ratios(base: str) -> Grid:
        title = f"Mean JCT relative to {base}"
        return grid(title, lambda policy, rate: f"{_ratio(results, policy, base, rate, noise):.2f}")

    yield grid("Mean JCT (s)", lambda policy, rate: f"{_middle(results.of(policy, rate, noise), _mean):,.1f}")
    yield grid(
        "p95 of JCT (s)", lambda policy, rate: f"{_middle(results.of(policy, rate, noise), _p95):,.1f}"
    )
    yield from (ratios(base) for base in _BASELINES if base in sweep.policies)
    columns = ("policy", "busy", "recomputed", "parked", "restored", "dropped", "preempted")
    rows = tuple((p, *_machine_row(results.of(p, rate, noise))) for p in sweep.policies)
    yield Grid(f"The machine at {rate:g} jobs/s{suffix}", columns, rows)


def _machine_row(runs: Sequence[Run]) -> tuple[str, ...]:
    counts = (lambda r: r.parks, lambda r: r.restores, lambda r: r.drops, lambda r: r.switches)
    return (
        f"{_middle(runs, lambda r: r.utilization):.0%}",
        f"{_middle(runs, lambda r: r.recomputed_share):.0%}",
        *(f"{_middle(runs, count):,.0f}" for count in counts),
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _listed(what: str, values: Sequence[int]) -> str:
    return f"{what}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"


def _mean(run: Run) -> float:
    return run.mean_s


def _p95(run: Run) -> float:
    return run.p95_s


def _middle(runs: Sequence[Run], value: Value) -> float:
    return median(map(value, runs))


def _ratio(results: Results, policy: str, base: str, rate: float, noise: float) -> float:
    pairs = zip(results.of(policy, rate, noise), results.of(base, rate, noise), strict=True)
    return median(run.mean_s / other.mean_s for run, other in pairs)


# -- plots -----------------------------------------------------------------------------------------


def _jct_vs_rate(results: Results) -> "Figure":
    sweep, noise = results.sweep, results.sweep.noises[0]
    figure, axes = _figure("arrivals (jobs/s)", "job completion time (s)")
    shown = []
    for index, policy in enumerate(sweep.policies):
        for value, style, label in ((_mean, "-", policy), (_p95, "--", None)):
            times = [_middle(results.of(policy, rate, noise), value) for rate in sweep.rates]
            axes.plot(sweep.rates, times, style, label=label, **_look(index))
            shown += times
    _scale(axes, shown)
    axes.set_xticks(sweep.rates, [f"{rate:g}" for rate in sweep.rates])
    return _titled(figure, results, "mean (solid) and 95th percentile (dashed)")


def _jct_cdf(results: Results, rate: float) -> "Figure":
    figure, axes = _figure("job completion time (s)", "share of jobs (%)")
    for index, policy in enumerate(results.sweep.policies):
        runs = results.of(policy, rate, results.sweep.noises[0])
        times = [median(at) for at in zip(*(run.quantiles_s for run in runs), strict=True)]
        axes.plot(times, range(101), label=policy, **_look(index), markevery=(3 * index % 20, 20))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 100)
    return _titled(figure, results, f"at {rate:g} jobs/s")


def _jct_by_kind(results: Results, rate: float) -> "Figure":
    sweep = results.sweep
    chosen = {policy: results.of(policy, rate, sweep.noises[0]) for policy in sweep.policies}
    kinds = sorted({kind for runs in chosen.values() for run in runs for kind in run.kinds})
    columns = min(_PANELS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure = _empty(_HEIGHT_IN * (0.4 + 0.3 * rows))
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(rows, columns, place + 1)
        for index, (policy, runs) in enumerate(chosen.items()):
            time = median(run.kinds[kind].mean_s for run in runs if kind in run.kinds)
            label = None if place else policy
            axes.bar(index, time, color=_COLOURS[index % len(_COLOURS)], label=label, hatch=_hatch(index))
        axes.set_title(kind, fontsize="medium")
        axes.set_xticks([])
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.supylabel("mean job completion time (s)", fontsize="medium")
    return _titled(figure, results, f"at {rate:g} jobs/s, by kind of job")


def _noise(results: Results, rate: float) -> "Figure":
    sweep = results.sweep
    base = "fcfs" if "fcfs" in sweep.policies else sweep.policies[0]
    figure, axes = _figure("error of predictions (log-normal sigma)", f"mean completion time / {base}'s")
    for index, policy in enumerate(sweep.policies):
        ratios = [_ratio(results, policy, base, rate, noise) for noise in sweep.noises]
        axes.plot(sweep.noises, ratios, label=policy, **_look(index))
    axes.set_xticks(sweep.noises)
    axes.set_ylim(bottom=0)
    return _titled(figure, results, f"at {rate:g} jobs/s")


def _figure(xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    figure = _empty(_HEIGHT_IN)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _empty(height_in: float) -> "Figure":
    # Without pyplot: no window system, and nothing global.
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout="constrained")


def _titled(figure: "Figure", results: Results, what: str) -> "Figure":
    sweep = results.sweep
    figure.suptitle(f"{sweep.workload} on {sweep.machine.name}, {what}", fontsize="large")
    # In the middle: a long title may reach over the corner.
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _look(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5,
        "linewidth": 1.6,
    }


def _hatch(index: int) -> str | None:
    return "//" if index >= len(_COLOURS) else None


def _scale(axes: "Axes", shown: Sequence[float]) -> None:
    if max(shown) > _WIDE * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
