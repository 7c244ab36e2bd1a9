"""The report of the command."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from astraea_local.learning.evaluate import Report
from astraea_local.learning.report import as_dict, render, report
from tests.learning.histories import after_output, alternating, history, write

PATTERN = history(40, 8, output=alternating, wait=after_output)


def text(found: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_both_sides_are_shown(tmp_path: Path) -> None:
    found = report(write(tmp_path / "history.sqlite3", PATTERN), "model")
    assert found.output.wins
    assert found.wait.wins
    shown = text(found)
    assert "history of model" in shown
    assert shown.count("empirical") == shown.count("learned") == 2
    assert shown.count("yes") == 2
    for target in found.targets:
        assert target.learned is not None
        assert f"{target.learned.loss:.4f}" in shown


def test_without_torch_the_empirical_side_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = report(write(tmp_path / "history.sqlite3", PATTERN), None)
    assert found.output.empirical is not None
    assert found.output.learned is None
    shown = text(found)
    assert "pip install 'astraea-local[learned]'" in shown
    assert "history of all models" in shown


def test_too_few_records_are_said(tmp_path: Path) -> None:
    found = report(tmp_path / "none.sqlite3", None)
    assert "fewer than 200" in text(found)
    assert text(found).count("yes") == 2


def test_the_dict_is_json(tmp_path: Path) -> None:
    found = report(write(tmp_path / "history.sqlite3", PATTERN), "model")
    read = json.loads(json.dumps(as_dict(found)))
    assert read["model"] == "model"
    assert read["calibrated"] == [0.1, 0.5, 0.9]
    assert read["output"]["wins"] is True
    assert read["output"]["rows"] == 320
    assert read["wait"]["learned"]["loss"] < read["wait"]["empirical"]["loss"]
    nothing = as_dict(report(tmp_path / "none", None))
    assert json.loads(json.dumps(nothing))["wait"]["empirical"] is None
