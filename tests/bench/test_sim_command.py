"""`astraea-local bench sim` as a user meets it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from astraea_local.bench import report, sweep
from astraea_local.bench.experiment import POLICY_NAMES
from astraea_local.bench.sweep import Results
from astraea_local.calibration import (
    Calibration,
    Copies,
    Key,
    LayoutTimes,
    PrefillRow,
    ResidencyRow,
    Settings,
    StepRow,
)
from astraea_local.cli import app
from astraea_local.profile import Profile
from astraea_local.scheduler.speeds import Speeds

PLOTS = ["jct_by_kind.png", "jct_cdf.png", "jct_vs_rate.png"]
QUICK = ("--policies", "fcfs,fcfs+lru,oracle", "--rates", "5,20", "--jobs", "12")


def sim(out: Path, *arguments: str | Path) -> Result:
    """Runs it with `--out`."""
    return CliRunner().invoke(app, ["bench", "sim", "--out", str(out), *map(str, arguments)])


def results(out: Path, *arguments: str | Path) -> Results:
    """What a short run found."""
    done = sim(out, *QUICK, *arguments)
    assert done.exit_code == 0, done.stderr
    return Results.model_validate_json((out / "results.json").read_bytes())


def fails(out: Path, *arguments: str | Path) -> str:
    """The one line on stderr of a run that must be refused before anything is written."""
    done = sim(out, "--jobs", "5", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("astraea-local: ")
    assert not out.is_dir() or list(out.iterdir()) == []
    return line.removeprefix("astraea-local: ")


def test_files_and_tables(tmp_path: Path) -> None:
    """JSON, Markdown and plots in the folder, the tables on stdout."""
    out = tmp_path / "new" / "folder"
    done = sim(out, *QUICK, "--seeds", "2,1,2")
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [*PLOTS, "results.json", "results.md"]
    assert all((out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in PLOTS)
    found = Results.model_validate_json((out / "results.json").read_bytes())
    assert (found.sweep.seeds, found.sweep.rates) == ((1, 2), (5.0, 20.0))
    assert len(found.runs) == 3 * 2 * 2
    page = (out / "results.md").read_text()
    for policy in ("fcfs", "fcfs+lru", "oracle"):
        assert page.count(f"\n| {policy} |") == 5
        assert done.stdout.count(f"\n {policy} ") == 5
    assert "## The machine at 20 jobs/s" in page
    assert done.stdout.endswith(f"stored in {out}\n")
    assert done.stderr == ""


def test_the_json_is_printed_for_scripts(tmp_path: Path) -> None:
    """The same as in the file, and nothing else."""
    done = sim(tmp_path, *QUICK, "--json")
    assert done.stdout == (tmp_path / "results.json").read_text()
    data = json.loads(done.stdout)
    assert list(data) == ["version", "package", "sweep", "runs"]
    assert {"policy", "rate", "seed", "noise", "mean_s", "p50_s", "p95_s", "p99_s", "max_s"} <= set(
        data["runs"][0]
    )


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All policies, InferCept's workload, the large machine."""
    asked: list[sweep.Sweep] = []

    def remember(wanted: sweep.Sweep, **_options: object) -> Results:
        asked.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run", remember)
    sim(tmp_path)
    (wanted,) = asked
    assert wanted.policies == POLICY_NAMES
    assert (wanted.workload, wanted.machine.name) == ("infercept", "a100-8b")
    assert (wanted.rates, wanted.seeds, wanted.noises) == ((1.0, 2.0, 3.0), (1,), (0.0,))
    assert (wanted.jobs, wanted.context_limit, wanted.heavy_tail) == (1000, None, None)


def test_options_reach_the_sweep(tmp_path: Path) -> None:
    """Each of them."""
    found = results(
        tmp_path,
        *("--workload", "mixed", "--machine", "smollm2-cpu", "--context-limit", "2000"),
        *("--noise", "0.5,0", "--heavy-tail", "0.1:3", "--cdf-rate", "5", "--processes", "2"),
        *("--set", "level_tokens=[100, 200]", "--set", "max_step_ms=50.0", "--set", "paper_refill=false"),
    ).sweep
    assert (found.workload, found.machine.name, found.context_limit) == ("mixed", "smollm2-cpu", 2000)
    assert (found.noises, found.heavy_tail) == ((0.0, 0.5), (0.1, 3.0))
    assert (found.scheduler.level_tokens, found.scheduler.paper_refill) == ((100, 200), False)
    assert found.machine.max_step_s == 0.05
    assert "## The machine at 5 jobs/s, noise 0.5" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "noise.png").exists()


def test_a_recorded_workload(tmp_path: Path) -> None:
    """With its name in the results."""
    file = tmp_path / "trace.jsonl"
    rows = [
        {"conversation_id": "a", "turn": 1, "role": "user", "content": "x" * 4000},
        {"conversation_id": "a", "turn": 2, "role": "assistant", "content": "y" * 400},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = results(tmp_path / "out", "--trace", file)
    assert (found.sweep.workload, found.sweep.trace) == ("trace", file)
    assert set(found.runs[0].kinds) == {"trace"}


@pytest.mark.parametrize(("layout", "sequences"), [("per_slot", 4), ("unified", 16)])
def test_a_calibrated_machine(tmp_path: Path, layout: str, sequences: int) -> None:
    """Its speeds, slots and cells."""
    speeds = Speeds(prefill_token_s=0.002)
    times = LayoutTimes(
        steps=(StepRow(segments=1, tokens=64, seconds=0.01),),
        residency=(ResidencyRow(idle=0, seconds=0.01),),
        speeds=speeds,
    )
    made = Calibration(
        key=Key(fingerprint="f", device="cpu", settings=Settings.of(Profile()), llama_cpp="1"),
        model="model.gguf",
        taken_at=1.7e9,
        took_s=50.0,
        others=0.0,
        layout="unified" if layout == "unified" else "per_slot",
        prefill=(PrefillRow(new=16, past=0, seconds=0.1),),
        layouts={"per_slot": times, "unified": times},
        copies=Copies(save=4e9, restore=5e9),
        prefill_error=0.0,
        step_error=0.0,
    )
    file = tmp_path / "calibration.json"
    file.write_text(made.model_dump_json())
    machine = results(tmp_path / "out", "--calibration", file).sweep.machine
    assert (machine.name, machine.speeds) == ("model.gguf", speeds)
    assert (machine.slots, machine.cells, machine.sequences, machine.batch) == (4, 8192, sequences, 512)
    assert machine.job_context == (2048 if layout == "per_slot" else 8192)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--policies fcfs,fifo", "--policies: no policy 'fifo': choose among astraea, "),
        ("--policies fcfs+hold", "--policies: no retention 'hold' in 'fcfs+hold': choose among drop, "),
        ("--workload batch", "--workload 'batch': choose one of infercept, coding, mixed, or give a --trace"),
        ("--workload mixed --trace t", "--workload and --trace exclude each other"),
        ("--trace none.jsonl", "--trace none.jsonl: cannot be read: No such file or directory"),
        ("--machine h100", "--machine 'h100': choose one of a100-8b, smollm2-cpu, or give a --calibration"),
        ("--machine a100-8b --calibration c", "--machine and --calibration exclude each other"),
        ("--calibration none.json", "--calibration none.json: cannot be read: No such file or directory"),
        ("--rates 1,,2", "--rates '1,,2': expected rates above 0, as in 1,2,3"),
        ("--rates 0", "--rates '0': expected rates above 0, as in 1,2,3"),
        ("--rates nan", "--rates 'nan': expected rates above 0, as in 1,2,3"),
        ("--seeds 1.5", "--seeds '1.5': expected whole numbers, as in 1,2,3"),
        ("--noise 0,-1", "--noise '0,-1': expected sigmas of 0 to 5, as in 0,0.5,1"),
        (
            "--heavy-tail 2:1",
            "--heavy-tail '2:1': expected a share (0..1) and a factor above 0, as in 0.05:10",
        ),
        ("--heavy-tail 1", "--heavy-tail '1': expected a share (0..1) and a factor above 0, as in 0.05:10"),
        ("--set aging=2", "--set: unknown field 'scheduler.aging': known here are policy, max_step_ms, "),
        ("--set aging_ratio=0.5", "--set: scheduler.aging_ratio: Input should be greater than 1"),
        ("--set aging_ratio", "--set 'aging_ratio': expected FIELD=VALUE as in a profile, for example "),
        ("--set aging_ratio=x", "--set 'aging_ratio=x': expected FIELD=VALUE as in a profile, for example "),
        ('--set policy="fcfs"', "--set policy: give --policies instead"),
        ("--rates 1,2 --cdf-rate 3", "--cdf-rate 3: must be one of --rates 1,2"),
        (
            "--workload coding --machine smollm2-cpu",
            "tokens does not fit into smollm2-cpu: give --context-limit 2048 or less",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, arguments: str, expected: str) -> None:
    """One line with the option and what to write instead, exit code 2."""
    assert expected in fails(tmp_path / "out", *arguments.split())


def test_a_calibration_of_another_form(tmp_path: Path) -> None:
    """It must be one that `calibrate` wrote."""
    file = tmp_path / "c.json"
    file.write_text("{}")
    line = fails(tmp_path / "out", "--calibration", file)
    assert line == (
        f"--calibration {file}: not a calibration of this version: "
        "write one with `astraea-local calibrate --json`"
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Found before anything is simulated."""
    file = tmp_path / "file"
    file.touch()
    assert fails(file) == f"--out {file}: cannot be made: File exists"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file that cannot be replaced is named by its folder."""
    (tmp_path / "results.json" / "kept").mkdir(parents=True)
    done = sim(tmp_path, *QUICK)
    assert done.exit_code == 2
    assert done.stderr == f"astraea-local: --out {tmp_path}: cannot be written: Is a directory\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is simulated."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert fails(tmp_path) == "plots need matplotlib: pip install 'astraea-local[bench]'"


@pytest.mark.parametrize("moment", ["run", "plots"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """While it simulates or draws: exit code 130, no file, no traceback."""

    def interrupted(*_given: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep if moment == "run" else report, moment, interrupted)
    done = sim(tmp_path, *QUICK)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["bench"], ["bench", "sim"]])
def test_help_has_an_example(command: list[str]) -> None:
    """As all commands have."""
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300"})
    assert done.exit_code == 0
    assert "Example: astraea-local bench sim --policies astraea,fcfs" in " ".join(done.stdout.split())
