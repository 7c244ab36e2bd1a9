"""Sweeps and what is written about them."""

import json
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import median

import pytest

from astraea_local.bench import report
from astraea_local.bench.experiment import POLICY_NAMES
from astraea_local.bench.machine import a100_8b, smollm2_cpu
from astraea_local.bench.sweep import Results, Run, Sweep, named_policy, run
from astraea_local.bench.workloads import WorkloadError
from astraea_local.profile import SchedulerSettings

PNG = b"\x89PNG\r\n\x1a\n"


def small(**changes: object) -> Sweep:
    """A sweep that takes a fraction of a second."""
    plain = Sweep(
        workload="infercept",
        machine=a100_8b(slots=4),
        policies=("fcfs", "oracle"),
        rates=(20.0,),
        seeds=(1,),
        jobs=20,
    )
    return plain.model_copy(update=changes)


def untimed(runs: Sequence[Run]) -> list[Run]:
    """The runs without what differs each time."""
    return [each.model_copy(update={"took_s": 0.0}) for each in runs]


@pytest.fixture(scope="module")
def several() -> Results:
    """Two policies, rates, seeds and noises each."""
    return run(small(policies=("sjf", "fcfs"), rates=(5.0, 20.0), seeds=(1, 2), noises=(0.0, 1.0)))


# --- the sweep ----------------------------------------------------------------------------------


def test_every_combination_once(several: Results) -> None:
    """In a fixed order, found again by what it is."""
    sweep = several.sweep
    combined = [(r.noise, r.rate, r.seed, r.policy) for r in several.runs]
    assert combined == list(product(sweep.noises, sweep.rates, sweep.seeds, sweep.policies))
    assert [r.seed for r in several.of("sjf", 20.0, 1.0)] == [1, 2]


def test_figures_of_a_run(several: Results) -> None:
    """They agree with each other."""
    for each in several.runs:
        assert len(each.quantiles_s) == 101
        assert all(a <= b for a, b in pairwise(each.quantiles_s))
        assert (each.p50_s, each.p95_s, each.p99_s, each.max_s) == tuple(
            each.quantiles_s[i] for i in (50, 95, 99, 100)
        )
        assert each.quantiles_s[0] <= each.mean_s <= each.max_s
        assert sum(kind.jobs for kind in each.kinds.values()) == several.sweep.jobs
        total = sum(kind.jobs * kind.mean_s for kind in each.kinds.values())
        assert total / several.sweep.jobs == pytest.approx(each.mean_s)
        assert all(kind.p95_s <= each.max_s for kind in each.kinds.values())
        assert 0 < each.utilization <= 1
        assert each.makespan_s >= each.max_s
        assert each.took_s > 0


def test_what_is_varied_matters(several: Results) -> None:
    """Rates, seeds, and, for a policy that goes by predictions, their errors."""
    means = {(r.policy, r.rate, r.seed, r.noise): r.mean_s for r in several.runs}
    assert means["sjf", 5.0, 1, 0.0] < means["sjf", 20.0, 1, 0.0]
    assert means["sjf", 20.0, 1, 0.0] != means["sjf", 20.0, 2, 0.0]
    assert means["sjf", 20.0, 1, 0.0] != means["sjf", 20.0, 1, 1.0]
    assert means["fcfs", 20.0, 1, 0.0] == means["fcfs", 20.0, 1, 1.0]


def test_retention_is_part_of_the_name() -> None:
    """The policy's own, or another one."""
    own, other = run(small(policies=("fcfs", "fcfs+lru"))).runs
    assert (own.retention, other.retention) == ("drop", "lru")
    assert own.recomputed_share > 0.5
    assert own.drops > 0
    assert (other.recomputed_share, other.drops) == (0, 0)


def test_retentions_are_compared_under_one_policy() -> None:
    """Only what keeps nothing computes contexts again where room is ample."""
    names = ("drop", "keep", "lru", "paper", "adaptive")
    runs = run(small(policies=tuple(f"astraea+{name}" for name in names))).runs
    assert tuple(each.retention for each in runs) == names
    assert [each.recomputed_share > 0 for each in runs] == [True, False, False, False, False]
    assert max(each.mean_s for each in runs) == runs[0].mean_s


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fcfs", ("fcfs", "drop")), ("oracle+ttl", ("oracle", "ttl")), ("sjf", ("sjf", "lru"))],
)
def test_named_policy(name: str, expected: tuple[str, str]) -> None:
    """Policy and retention."""
    assert named_policy(name) == expected


@pytest.mark.parametrize("name", ["fifo", "", "+lru", "fcfs+", "fcfs+hold", "fcfs+lru+lru"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    """Those of policies, or of retentions."""
    with pytest.raises(ValueError, match=r"choose among (astraea|drop), "):
        named_policy(name)


def test_settings_reach_the_scheduler() -> None:
    """Slots that stay empty cost time."""
    literal = SchedulerSettings(paper_refill=False)
    (refilled,) = run(small(policies=("astraea_paper",))).runs
    (batched,) = run(small(policies=("astraea_paper",), scheduler=literal)).runs
    assert batched.mean_s > refilled.mean_s


def test_heavy_tails_take_longer() -> None:
    """Most of a job's time is tool time."""
    (plain,) = run(small(policies=("fcfs",))).runs
    (heavy,) = run(small(policies=("fcfs",), heavy_tail=(0.5, 10.0))).runs
    assert heavy.mean_s > 2 * plain.mean_s


@pytest.mark.parametrize("processes", [1, 2])
def test_a_workload_that_does_not_fit(processes: int) -> None:
    """Said with the limit that would."""
    with pytest.raises(WorkloadError, match="fit into smollm2-cpu: give --context-limit 2048 or less"):
        run(small(workload="coding", machine=smollm2_cpu(), jobs=2), processes=processes)
    fitting = small(workload="coding", machine=smollm2_cpu(), jobs=2, context_limit=2048)
    assert run(fitting).runs[0].kinds["coding"].jobs == 2


def test_two_processes_find_the_same(several: Results) -> None:
    """In the same order, and they tell how far they are."""
    told: list[tuple[float, str]] = []
    found = run(several.sweep, processes=2, on_progress=lambda *each: told.append(each))
    assert untimed(found.runs) == untimed(several.runs)
    assert all(a <= b for (a, _), (b, _) in pairwise(told))
    assert told[-1][0] == 1.0


def test_progress_names_the_simulation() -> None:
    """And counts finished jobs."""
    told: list[tuple[float, str]] = []
    run(small(jobs=250, rates=(50.0,)), on_progress=lambda *each: told.append(each))
    names = ["fcfs at 50 jobs/s, seed 1", "oracle at 50 jobs/s, seed 1"]
    assert list(dict.fromkeys(name for _, name in told)) == names
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) == 2 * 4


def test_a_recorded_workload(tmp_path: Path) -> None:
    """From a file, with its own context limit or another."""
    rows = [
        {"conversation_id": "a", "turn": 1, "role": "user", "content": "x" * 4000},
        {"conversation_id": "a", "turn": 2, "role": "assistant", "content": "y" * 400},
        {"conversation_id": "a", "turn": 3, "role": "tool", "content": "z" * 400, "delay_seconds": 2},
        {"conversation_id": "a", "turn": 4, "role": "assistant", "content": "done"},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    sweep = small(workload="trace", trace=file, policies=("fcfs+lru",), jobs=3)
    (whole,) = run(sweep).runs
    (cut,) = run(sweep.model_copy(update={"context_limit": 500})).runs
    assert whole.kinds["trace"].jobs == cut.kinds["trace"].jobs == 3
    assert cut.prefilled < whole.prefilled
    assert report.markdown(run(sweep), 20.0).startswith("# Simulation of trace trace.jsonl on a100-8b\n")


def test_results_survive_json(several: Results) -> None:
    """Nothing is lost."""
    assert Results.model_validate_json(several.model_dump_json()) == several


# --- what is written about it -------------------------------------------------------------------


def test_tables_are_medians_over_seeds(several: Results) -> None:
    """Ratios are taken for each seed first."""
    grids = {grid.title: grid for grid in report.tables(several, 20.0)}
    mean = grids["Mean JCT (s), noise 1"]
    assert mean.columns == ("policy", "5 jobs/s", "20 jobs/s")
    assert [row[0] for row in mean.rows] == ["sjf", "fcfs"]
    runs, bases = several.of("sjf", 20.0, 1.0), several.of("fcfs", 20.0, 1.0)
    assert mean.rows[0][2] == f"{median(r.mean_s for r in runs):,.1f}"
    assert grids["p95 of JCT (s), noise 1"].rows[0][2] == f"{median(r.p95_s for r in runs):,.1f}"
    ratio = median(r.mean_s / b.mean_s for r, b in zip(runs, bases, strict=True))
    relative = grids["Mean JCT relative to fcfs, noise 1"]
    assert relative.rows[0][2] == f"{ratio:.2f}"
    assert relative.rows[1][1:] == ("1.00", "1.00")
    assert not any("oracle" in title for title in grids)
    machine = grids["The machine at 20 jobs/s, noise 0"]
    drops = median(r.drops for r in several.of("fcfs", 20.0, 0.0))
    assert machine.rows[1][machine.columns.index("dropped")] == f"{drops:,.0f}"


def test_markdown_says_what_was_simulated() -> None:
    """Enough to do it again."""
    settings = SchedulerSettings(aging_ratio=4.0)
    changed = small(scheduler=settings, heavy_tail=(0.1, 5.0), context_limit=1500, seeds=(1, 2))
    lines = report.markdown(run(changed), 20.0).splitlines()
    assert lines[0] == "# Simulation of infercept on a100-8b"
    assert lines[2].startswith(
        "20 jobs in each simulation; seeds 1, 2 (medians over them); contexts of at most 1,500 tokens; "
        "heavy tails 0.1:5; aging_ratio = 4.0; astraea-local "
    )
    for heading in ("Mean JCT (s)", "Mean JCT relative to fcfs", "Mean JCT relative to oracle"):
        place = lines.index(f"## {heading}")
        assert lines[place + 2 : place + 4] == ["| policy | 20 jobs/s |", "| --- | ---: |"]
        assert [line.split()[1] for line in lines[place + 4 : place + 6]] == ["fcfs", "oracle"]


def test_plots(several: Results) -> None:
    """PNG files, one more with several noises."""
    made = report.plots(several, 20.0)
    assert list(made) == ["jct_vs_rate.png", "jct_cdf.png", "jct_by_kind.png", "noise.png"]
    assert all(content.startswith(PNG) for content in made.values())


def test_plots_of_many_policies_and_of_few_jobs() -> None:
    """More than there are colours; kinds that not every seed has; times that differ much or little."""
    names = (*POLICY_NAMES, "fcfs+lru", "fcfs+keep", "sjf+drop")
    many = run(small(policies=names, seeds=(1, 2), jobs=2, workload="mixed"))
    assert {len(r.kinds) for r in many.runs} == {2}
    one = run(small(policies=("fcfs+lru",), jobs=1, noises=(0.0, 1.0)))
    for results in (many, one):
        assert all(content.startswith(PNG) for content in report.plots(results, 20.0).values())


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whatever stops it, no part of a file stays."""
    report.save(tmp_path, {"a": b"old", "b": b"old"})
    with pytest.raises(FileNotFoundError):
        report.save(tmp_path, {"a": b"new", "none/b": b"new", "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"old"}
