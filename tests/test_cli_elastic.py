"""`resize`, `pause`, `resume` and `policy` against a running server that wants a key."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from astraea_local.bench.random_model import ShapeName
from tests.conftest import Server, StartServer
from tests.test_cli import run

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def guarded(
    start_server: StartServer,
    tiny_path: Callable[[ShapeName], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    file = tmp_path_factory.mktemp("guarded") / "profile.toml"
    file.write_text(
        f'[model]\nsource = "{tiny_path("tiny")}"\ngpu_layers = 0\nthreads = 1\n'
        "[context]\nsize = 1024\nslots = 2\n[prediction]\nhistory = false\n"
    )
    return start_server("--profile", str(file), "--api-key", "secret")


@pytest.fixture
def with_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRAEA_API_KEY", "secret")


def _state(server: Server) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{server.url}/astraea/v1/state", headers=KEY, timeout=10).json()
    return found


@pytest.mark.usefixtures("with_key")
def test_the_context_gets_another_size(guarded: Server) -> None:
    done = run("resize", "--ctx", "512", "--slots", "1", "--url", guarded.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "512 cells and 1 slots now" in done.stdout
    back = run("resize", "--ctx", "1024", "--slots", "2", "--url", guarded.url, "--json")
    assert "1,024 cells and 2 slots now" in json.loads(back.stdout)["done"]


@pytest.mark.usefixtures("with_key")
def test_the_model_is_unloaded_and_loaded_again(guarded: Server) -> None:
    done = run("pause", "--url", guarded.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unloaded" in done.stdout
    refused = run("resize", "--ctx", "512", "--url", guarded.url)
    assert refused.returncode == 2
    assert "resume it first" in refused.stderr
    assert run("resume", "--url", guarded.url).returncode == 0
    guarded.wait_until(lambda: _state(guarded)["status"] == "ready")


@pytest.mark.usefixtures("with_key")
def test_the_policy_is_listed_and_changed(guarded: Server) -> None:
    changed = run("policy", "fcfs", "--url", guarded.url, "--json")
    assert json.loads(changed.stdout)["policy"] == "fcfs"
    listed = run("policy", "--url", guarded.url)
    assert any(line.split()[:2] == ["*", "fcfs"] for line in listed.stdout.splitlines())
    unknown = run("policy", "lottery", "--url", guarded.url)
    assert unknown.returncode == 2
    assert "astraea_paper" in unknown.stderr


@pytest.mark.parametrize("command", [("resize", "--ctx", "512"), ("pause",), ("policy", "fcfs")])
def test_without_the_key_nothing_is_done(guarded: Server, command: tuple[str, ...]) -> None:
    refused = run(*command, "--url", guarded.url)
    assert refused.returncode == 2
    assert "key" in refused.stderr


def test_a_server_without_a_calibration_says_so(guarded: Server) -> None:
    events = _state(guarded)["events"]
    assert isinstance(events, list)
    assert any("no calibration found" in event["text"] for event in events)


def test_nothing_to_change() -> None:
    refused = run("resize")
    assert refused.returncode == 2
    assert "--ctx, --slots" in refused.stderr


@pytest.mark.usefixtures("with_key")
def test_jobs_and_the_scheduler_are_reached_with_the_key(guarded: Server) -> None:
    assert "paused" in run("scheduler", "pause", "--url", guarded.url).stdout
    assert "resumed" in run("scheduler", "resume", "--url", guarded.url).stdout
    unknown = run("job", "pin", "nobody", "--url", guarded.url)
    assert unknown.returncode == 2
    assert "nobody" in unknown.stderr
