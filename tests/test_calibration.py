"""Calibrations on disk, and the command that makes them."""

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from astraea_local import calibration
from astraea_local.bench.random_model import ShapeName
from astraea_local.calibration import (
    Calibration,
    Copies,
    Layout,
    LayoutTimes,
    PrefillRow,
    ResidencyRow,
    StepRow,
    key_of,
)
from astraea_local.profile import Profile, override
from astraea_local.scheduler.speeds import Speeds

DEVICE = "some CPU, 2 threads"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Something to take the fingerprint of."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 100)
    return path


def times(speeds: Speeds | None = None) -> LayoutTimes:
    """Tables of one layout."""
    steps = [StepRow(segments=n, tokens=n * each, seconds=0.01 * n) for n in (1, 2) for each in (64, 1000)]
    residency = [ResidencyRow(idle=idle, seconds=0.01) for idle in (0, 3000)]
    return LayoutTimes(steps=tuple(steps), residency=tuple(residency), speeds=speeds or Speeds())


def made(model: Path, profile: Profile, layouts: dict[Layout, LayoutTimes] | None = None) -> Calibration:
    """A calibration as `calibrate` makes it."""
    return Calibration(
        key=key_of(model, profile, DEVICE),
        model=model.name,
        taken_at=1.7e9,
        took_s=49.5,
        others=0.02,
        layout="per_slot",
        prefill=tuple(PrefillRow(new=n, past=p, seconds=n / 400) for p in (0, 1500) for n in (16, 512)),
        layouts=layouts or {"per_slot": times(), "unified": times(Speeds(idle_token_s=1e-6))},
        copies=Copies(save=4e9, restore=5e9, disk_write=1e9),
        prefill_error=0.02,
        step_error=0.05,
    )


def test_what_was_saved_is_loaded(model: Path, tmp_path: Path) -> None:
    """The same record, from a folder that only the user can enter, with nothing left beside it."""
    folder = tmp_path / "state" / "calibrations"
    saved = made(model, Profile())
    path = calibration.save(saved, folder)
    assert calibration.load(model, Profile(), DEVICE, folder) == saved
    assert path == calibration.path_for(saved.key, folder)
    assert list(folder.iterdir()) == [path]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    calibration.save(saved.model_copy(update={"took_s": 1.0}), folder)
    again = calibration.load(model, Profile(), DEVICE, folder)
    assert again is not None
    assert again.took_s == 1.0


def test_the_default_folder_follows_the_environment(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_STATE_HOME where that is how the platform is told."""
    if sys.platform != "linux":
        pytest.skip("other platforms have no variable for it")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    path = calibration.save(made(model, Profile()))
    assert path.parent == tmp_path / "xdg" / "astraea-local" / "calibrations"
    assert calibration.load(model, Profile(), DEVICE) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"kv.type_k": "q8_0"},
        {"model.flash_attention": "on"},
        {"model.gpu_layers": 7},
        {"model.split": "layer"},
        {"context.size": 4096},
        {"context.slots": 2},
        {"context.batch": 1024},
        {"context.ubatch": 256},
    ],
)
def test_other_settings_find_nothing(model: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """Whatever changes speeds asks for a calibration of its own."""
    calibration.save(made(model, Profile()), tmp_path)
    assert calibration.load(model, override(Profile(), change), DEVICE, tmp_path) is None


def test_what_does_not_change_speeds_finds_it(model: Path, tmp_path: Path) -> None:
    """Ports and policies have nothing to do with it, and both layouts are in one calibration."""
    calibration.save(made(model, Profile()), tmp_path)
    changes = {"server.port": 9, "scheduler.policy": "fcfs", "kv.layout": "unified", "name": "mine"}
    found = calibration.load(model, override(Profile(), changes), DEVICE, tmp_path)
    assert found is not None
    assert found.speeds_in("unified") == Speeds(idle_token_s=1e-6)
    assert found.speeds == found.speeds_in("per_slot") == Speeds()


def test_another_device_model_or_llama_cpp_finds_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is told by its content, wherever it lies."""
    calibration.save(made(model, Profile()), tmp_path)
    assert calibration.load(model, Profile(), "other CPU", tmp_path) is None
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(model.read_bytes())
    assert calibration.load(moved, Profile(), DEVICE, tmp_path) is not None
    moved.write_bytes(model.read_bytes() + b"more")
    assert calibration.load(moved, Profile(), DEVICE, tmp_path) is None
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "9.9")
    assert calibration.load(model, Profile(), DEVICE, tmp_path) is None


def test_the_fingerprint_reads_the_ends_of_a_large_file(tmp_path: Path) -> None:
    """Both ends count, and the file's size."""
    path = tmp_path / "large"
    content = bytearray(5 << 20)
    path.write_bytes(content)
    seen = {calibration.fingerprint(path)}
    for position in (0, (1 << 20) - 1, len(content) - 1):
        changed = content.copy()
        changed[position] = 1
        path.write_bytes(changed)
        seen.add(calibration.fingerprint(path))
    path.write_bytes(content + b"\0")
    seen.add(calibration.fingerprint(path))
    assert len(seen) == 5


def break_json(text: str) -> str:
    return text[: len(text) // 2]


def break_version(text: str) -> str:
    return text.replace('"version": 1', '"version": 0')


def break_rate(text: str) -> str:
    return text.replace('"save_bytes_s": 4000000000.0', '"save_bytes_s": 0.0')


def break_time(text: str) -> str:
    return text.replace('"prefill_token_s": 0.005', '"prefill_token_s": -1')


@pytest.mark.parametrize("damage", [break_json, break_version, break_rate, break_time])
def test_a_file_that_is_not_usable_is_ignored(
    model: Path, tmp_path: Path, damage: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """As if it was not there, with one line that says so."""
    path = calibration.save(made(model, Profile()), tmp_path)
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with caplog.at_level(logging.WARNING):
        assert calibration.load(model, Profile(), DEVICE, tmp_path) is None
    (record,) = caplog.records
    assert f"{path} is ignored" in record.getMessage()


def test_a_file_that_cannot_be_read_is_ignored(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing about a calibration keeps a server from starting."""
    calibration.path_for(made(model, Profile()).key, tmp_path).mkdir()
    assert calibration.load(model, Profile(), DEVICE, tmp_path) is None
    assert "cannot be read" in caplog.text


def test_its_own_layout_must_have_been_measured(model: Path) -> None:
    """`speeds` has an answer always."""
    with pytest.raises(ValidationError, match="was not measured"):
        made(model, Profile(), {"unified": times()})


@pytest.mark.parametrize(
    ("per_slot", "unified", "preferred"),
    [
        (Speeds(), Speeds(), "unified"),
        (Speeds(), Speeds(idle_token_s=1e-6), "per_slot"),
        (Speeds(), Speeds(step_token_s=4e-6), "per_slot"),
        (Speeds(), None, "per_slot"),
    ],
)
def test_the_preferred_layout(
    model: Path, per_slot: Speeds, unified: Speeds | None, preferred: Layout
) -> None:
    """Unified, unless idle tokens or shared cells make steps slower."""
    layouts: dict[Layout, LayoutTimes] = {"per_slot": times(per_slot)}
    if unified is not None:
        layouts["unified"] = times(unified)
    assert made(model, Profile(), layouts).preferred_layout == preferred


def test_no_layout_is_preferred_without_a_comparison(model: Path) -> None:
    """Idle tokens beside which nothing was measured, or contexts of one layout only, favour none."""
    fast = times(Speeds(step_token_s=1e-9))
    blind = fast.model_copy(update={"residency": fast.residency[:1]})
    short = fast.model_copy(update={"steps": tuple(r for r in fast.steps if r.tokens <= 64 * r.segments)})
    for unified, preferred in ((fast, "unified"), (blind, "per_slot"), (short, "per_slot")):
        assert made(model, Profile(), {"per_slot": times(), "unified": unified}).preferred_layout == preferred


def test_the_summary_has_every_figure(model: Path) -> None:
    """One line each for what a user asks."""
    taxed = replace(Speeds(), idle_token_s=1e-6)
    lines = dict(calibration.summary(made(model, Profile(), {"per_slot": times(), "unified": times(taxed)})))
    assert lines["prefill 512 behind 1,500"] == "400 tokens/s"
    assert lines["decode unified, contexts of 64"] == "100 / 100 tokens/s at 1 / 2 wide"
    assert lines["residency tax unified"] == "+3.0 ms a step (+30%) beside 3,000 idle tokens"
    assert lines["residency tax per_slot"].startswith("+0.0 ms")
    assert lines["layout"] == "now per_slot; by speed, auto should prefer per_slot"
    assert lines["KV to disk and back"] == "1.00 GB/s, not measured"
    assert "busy machine" not in lines


def test_the_summary_warns_of_a_busy_machine(model: Path) -> None:
    """Figures taken beside other work are those of half a machine."""
    busy = made(model, Profile()).model_copy(update={"others": 0.5})
    assert dict(calibration.summary(busy))["busy machine"].startswith("others used 50% of the CPU")


# -- the command -----------------------------------------------------------------------------------


def start(tmp_path: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """Starts `calibrate` with its state and cache below `tmp_path`."""
    return subprocess.Popen(
        [sys.executable, "-m", "astraea_local", "calibrate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "COLUMNS": "200",
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_command_measures_and_stores(tiny_path: Callable[[ShapeName], Path], tmp_path: Path) -> None:
    """`--json` prints the calibration that was stored; without it, a table."""
    small = ("--ctx", "512", "--slots", "2", "--threads", "1", "--seconds", "1")
    path = tiny_path("tiny")
    process = start(tmp_path, "--model", path, *small, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    printed = Calibration.model_validate_json(out)
    (stored,) = files(tmp_path / "state")
    assert Calibration.model_validate_json(stored.read_bytes()) == printed
    assert printed.key.settings.slots == json.loads(out)["key"]["settings"]["slots"] == 2
    process = start(tmp_path, "--model", path, *small, "--kv-layout", "unified")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "residency tax unified" in out
    assert out.splitlines()[-1] == f"stored in {stored}"
    assert files(tmp_path / "cache") == []


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    """Exit code 2 for a model that is none, for a wrong setting, for a folder that cannot be written."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF but nothing more")
    for arguments, words in (
        (("--model", bad), "bad.gguf: llama.cpp cannot load this model"),
        (("--kv-layout", "mixed"), "kv.layout: Input should be"),
        (("--ctx", "65536"), "set context.size to at most 32768"),
    ):
        process = start(tmp_path, *arguments)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, ""), err
        line = err.splitlines()[-1]
        assert line.startswith("astraea-local: ")
        assert words in line
        assert "Traceback" not in err


def test_a_place_that_cannot_be_written(tiny_path: Callable[[ShapeName], Path], tmp_path: Path) -> None:
    """A state folder that is a file is one line too."""
    (tmp_path / "state").write_text("in the way")
    process = start(tmp_path, "--model", tiny_path("tiny"), "--ctx", "512", "--seconds", "0")
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "astraea-local: the calibration cannot be stored" in err


def test_ctrl_c_ends_the_child_and_leaves_nothing(demo_path: Path, tmp_path: Path) -> None:
    """The measuring process is gone, and there is no file."""
    # A tiny model might be done before anybody interrupts.
    process = start(tmp_path, "--model", demo_path, "--ctx", "4096", "--seconds", "60")
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not (children := [c for c in parent.children(recursive=True) if len(c.memory_maps()) > 50]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert files(tmp_path / "state") == files(tmp_path / "cache") == []


def test_help_has_an_example() -> None:
    """As for every command."""
    ended = subprocess.run(
        [sys.executable, "-m", "astraea_local", "calibrate", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert "Example: astraea-local calibrate" in ended.stdout
