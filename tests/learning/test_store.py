"""The file of a trained model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astraea_local.learning import store
from astraea_local.learning.evaluate import LEVELS, Report, Score, TargetReport
from astraea_local.learning.store import Arrays, file_name, load, save
from astraea_local.scheduler.learned import OUTPUT_FEATURES, WAIT_FEATURES, LearnedPair

SCORE = Score(0.25, (0.1, 0.5, 0.9))


def network(features: int) -> Arrays:
    rng = np.random.default_rng(0)
    count = len(LEVELS)
    return {
        "center": rng.normal(size=features),
        "scale": np.ones(features),
        "w1": rng.normal(size=(features, 3)),
        "b1": np.zeros(3),
        "w2": rng.normal(size=(3, 3)),
        "b2": np.zeros(3),
        "w3": rng.normal(size=(3, count)),
        "b3": np.zeros(count),
        "linear": np.zeros((features, count)),
        "bounds": np.array([-1.0, 9.0]),
        "levels": np.array(LEVELS),
    }


NETWORKS = {"output": network(len(OUTPUT_FEATURES)), "wait": network(len(WAIT_FEATURES))}


def report(*, output: bool, wait: bool) -> Report:
    return Report(
        "model",
        TargetReport("output", 1000, SCORE, SCORE, output),
        TargetReport("wait", 900, SCORE, SCORE, wait),
    )


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("wait", [True, False])
def test_only_what_won_is_used(tmp_path: Path, output: bool, wait: bool) -> None:
    path = tmp_path / "folder" / file_name("model")
    save(path, report(output=output, wait=wait), NETWORKS)
    pair = load(path)
    assert pair is not None
    assert (pair.output is not None, pair.wait is not None) == (output, wait)
    assert list(path.parent.iterdir()) == [path]


def test_the_file_tells_how_good_it_is(tmp_path: Path) -> None:
    save(tmp_path / "file.npz", report(output=True, wait=False), NETWORKS)
    with np.load(tmp_path / "file.npz", allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
    assert about["report"]["output"]["learned"] == {"loss": 0.25, "below": [0.1, 0.5, 0.9]}
    assert about["report"]["wait"]["wins"] is False


def test_a_newer_file_takes_the_place_of_the_older(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    save(path, report(output=True, wait=True), NETWORKS)
    save(path, report(output=False, wait=False), NETWORKS)
    assert load(path) == LearnedPair()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.npz"
    save(path, report(output=True, wait=True), NETWORKS)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save(path, report(output=False, wait=False), NETWORKS)
    pair = load(path)
    assert pair is not None
    assert pair.output is not None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("model", ["a/b", "../x", "Qwen 3.gguf", "ü", "", None])
def test_any_model_has_a_file_of_its_own(tmp_path: Path, model: str | None) -> None:
    path = tmp_path / file_name(model)
    assert path.parent == tmp_path
    assert path.suffix == ".npz"
    save(path, report(output=True, wait=True), NETWORKS)
    assert load(path) is not None
    assert len({file_name(name) for name in ("a/b", "a_b", "a%2Fb", "", None)}) == 5


def test_no_file_is_no_model_and_not_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(tmp_path / "none.npz") is None
    assert caplog.messages == []


def test_a_file_of_another_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "file.npz", report(output=True, wait=True), NETWORKS)
    monkeypatch.setitem(store._FEATURES, "wait", ("another", *WAIT_FEATURES[1:]))
    assert load(tmp_path / "file.npz") is None


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _altered(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage", [_truncated, _altered, lambda _: b"", lambda _: b"text", lambda _: b"PK\3\4"]
)
def test_a_broken_file_is_no_model(tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file.npz"
    save(path, report(output=True, wait=True), NETWORKS)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    assert load(path) is None
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": np.zeros(1)},
        {"about": np.array("no json")},
        {"about": np.array("[]")},
        {"about": np.array([{}], dtype=object)},
    ],
)
def test_a_file_of_something_else_is_no_model(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "file.npz", allow_pickle=True, **arrays)
    assert load(tmp_path / "file.npz") is None


def test_a_network_of_another_size_is_no_model(tmp_path: Path) -> None:
    networks = {**NETWORKS, "output": network(len(OUTPUT_FEATURES) + 1)}
    save(tmp_path / "file.npz", report(output=True, wait=True), networks)
    assert load(tmp_path / "file.npz") is None
