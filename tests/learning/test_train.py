"""Training: what is learned, and the command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from astraea_local.learning import LearnedUnavailable, available
from astraea_local.learning.dataset import Rows, build
from astraea_local.learning.evaluate import MIN_ROWS, TargetReport
from astraea_local.learning.store import load
from astraea_local.learning.train import FAILED, NO_TORCH, TOO_FEW, fit, forward, learn
from astraea_local.scheduler.learned import MOST_DEVIATION, OUTPUT_FEATURES, LearnedModel
from tests.learning.histories import after_output, alternating, history, noise, tool_noise, write

PATTERN = history(60, 8, output=alternating, wait=after_output)


def lead(found: TargetReport) -> float:
    """By which share the learned model is better."""
    assert found.learned is not None
    assert found.empirical is not None
    return 1 - found.learned.loss / found.empirical.loss


def test_what_the_empirical_paths_cannot_see_is_learned() -> None:
    """Outputs depend on kind and number, waits on the output that called the tool."""
    report = learn(PATTERN, "model").report
    assert report.model == "model"
    for target in report.targets:
        assert target.wins
        assert lead(target) > 0.5
        assert target.learned is not None
        low, median, high = target.learned.below
        assert low < 0.3 < median < 0.8 < high


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_not_learned(seed: int) -> None:
    """One segment in each job: then there is nothing that the kind does not say."""
    output = learn(history(400, 1, output=noise, seed=seed), None).report.output
    assert not output.wins
    assert lead(output) < 0.02
    wait = learn(history(200, 3, wait=tool_noise, seed=seed), None).report.wait
    assert not wait.wins
    assert lead(wait) < 0.0


def test_the_network_predicts_the_same_without_torch() -> None:
    rows = build(PATTERN).outputs
    arrays = fit(rows)
    model = LearnedModel({**arrays, "bounds": np.array([-50.0, 50.0])})
    network = {name: torch.tensor(array) for name, array in arrays.items()}
    features = torch.tensor(rows.features)
    standard = ((features - network["center"]) * network["scale"]).clamp(-MOST_DEVIATION, MOST_DEVIATION)
    expected = torch.exp(forward(network, standard)).numpy()
    found = np.array([model.predict(row).points for row in rows.features.tolist()])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_seed_decides_everything() -> None:
    rows = build(PATTERN).outputs
    first, again, other = fit(rows), fit(rows), fit(rows, seed=1)
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["w1"], other["w1"])


def test_held_out_rows_are_not_seen() -> None:
    rows = build(PATTERN).outputs
    changed = rows.targets.copy()
    changed[rows.held_out_from :] = 20.0
    first, second = fit(rows), fit(Rows(rows.features, changed))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_features_and_targets_that_never_change_do_no_harm() -> None:
    rows = Rows(np.ones((MIN_ROWS, 3)), np.full(MIN_ROWS, 2.0))
    points = LearnedModel(fit(rows)).predict([1.0, 1.0, 1.0]).points
    np.testing.assert_allclose(points, np.exp(2.0), rtol=0.05)


def test_a_target_with_too_few_rows_is_left_out() -> None:
    trained = learn(history(MIN_ROWS, 1), None)
    assert list(trained.networks) == ["output"]
    assert trained.report.wait == TargetReport("wait", 0)
    trained = learn(history(MIN_ROWS - 1, 1), None)
    assert trained.networks == {}
    assert not any(target.wins for target in trained.report.targets)


def test_without_torch_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not available()
    with pytest.raises(LearnedUnavailable, match=r"pip install 'astraea-local\[learned\]'"):
        learn(PATTERN, None)


def test_only_training_imports_torch() -> None:
    assert available()
    modules = ("background", "dataset", "evaluate", "report", "store", "train")
    lines = [f"import astraea_local.learning.{name}" for name in modules]
    lines.append("import sys; sys.exit('torch' in sys.modules)")
    python("-c", "\n".join(lines), expected=0)


def python(*arguments: str, expected: int) -> str:
    """Runs the interpreter and returns all that it said."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == expected, done.stderr
    return done.stdout + done.stderr


def command(path: Path, out: Path, *more: str, expected: int) -> str:
    arguments = ["--history", str(path), "--out", str(out), *more]
    return python("-W", "error", "-m", "astraea_local.learning.train", *arguments, expected=expected)


def test_the_command_writes_a_model_that_works(tmp_path: Path) -> None:
    path = write(tmp_path / "history.sqlite3", PATTERN)
    said = command(path, tmp_path / "models", "--model", "model", expected=0)
    file = tmp_path / "models" / "learned-model.npz"
    assert list(file.parent.iterdir()) == [file]
    assert str(file) in said
    assert "output, wait" in said
    assert len(said.splitlines()) == 1
    pair = load(file)
    assert pair is not None
    assert pair.output is not None
    assert pair.wait is not None
    expected = LearnedModel(learn(PATTERN, "model").networks["output"])
    row = build(PATTERN).outputs.features[-1].tolist()
    assert pair.output.predict(row) == expected.predict(row)
    assert len(row) == len(OUTPUT_FEATURES)


def test_the_command_says_in_a_line_that_records_are_too_few(tmp_path: Path) -> None:
    path = write(tmp_path / "history.sqlite3", PATTERN)
    said = command(path, tmp_path, "--model", "another", expected=TOO_FEW)
    assert said.splitlines() == [f"0 segments are recorded, {MIN_ROWS} are needed"]
    command(tmp_path / "none", tmp_path, expected=TOO_FEW)
    assert not (tmp_path / "none").exists()
    assert list(tmp_path.glob("*.npz")) == []


def test_the_command_says_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "history.sqlite3", PATTERN)
    (tmp_path / "file").touch()
    assert len(command(path, tmp_path / "file", expected=FAILED).splitlines()) == 1
    blocked = f"""
import sys
sys.modules["torch"] = None
from astraea_local.learning.train import main
sys.exit(main(["--history", {str(path)!r}, "--out", {str(tmp_path)!r}]))
"""
    assert "pip install" in python("-c", blocked, expected=NO_TORCH)


def test_the_command_yields_to_everything_else(tmp_path: Path) -> None:
    nice = f"""
import os
from astraea_local.learning.train import main
main(["--history", {str(tmp_path / "none")!r}, "--out", "."])
print(os.nice(0))
"""
    assert python("-c", nice, expected=0).split()[0] == "19"
    assert os.nice(0) < 19
