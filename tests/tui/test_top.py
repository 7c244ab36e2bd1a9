"""`astraea-local top` as a user meets it: in a script, and in a terminal."""

import json
from pathlib import Path

import pytest

from astraea_local.frame import StateFrame
from astraea_local.tui.record import Recorder, Recording
from tests.conftest import Server, free_port
from tests.test_cli import fails, run
from tests.tui.driving import frames, world
from tests.tui.terminal import Terminal


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file of three frames."""
    with Recorder(tmp_path / "r.jsonl.gz") as recorder:
        for frame in frames(world(), 3):
            recorder.write(frame.model_dump_json().encode())
    return recorder.path


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://[::1", "http://127.0.0.1:99999"])
def test_a_wrong_address(url: str) -> None:
    assert fails("top", url, "--once") == (
        f"{url}: not the address of a server: write it as http://127.0.0.1:8080"
    )


def test_no_server() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    words = f"{url}: no server answers: start one with `astraea-local serve`"
    assert fails("top", url, "--once", "--json", code=1) == words


@pytest.mark.e2e
def test_tls_where_there_is_none(server: Server) -> None:
    url = server.url.replace("http:", "https:")
    assert "write http:// instead of https://" in fails("top", url, "--once", code=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "there is no terminal to draw on: use --once, or --once --json"),
        (("--json",), "--json goes with --once"),
        (("--mock", "--replay", "r.jsonl"), "--mock and --replay exclude each other"),
        (("--record", "r.jsonl", "--once"), "leave out --once, --mock and --replay"),
        (("--once", "--api-key", "schlüssel"), "--api-key: a key is printable ASCII"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], words: str) -> None:
    assert words in fails("top", *options)


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    remedy = "make one with `astraea-local top --record`"
    file = tmp_path / "r.jsonl"
    missing = f"{file}: cannot be read: No such file or directory: {remedy}"
    assert fails("top", "--replay", file, "--once") == missing
    file.write_text("hello\n")
    assert fails("top", "--replay", file, "--once", "--json") == f"{file}: not a recording: {remedy}"
    file.write_text('{"frame_version": 99}\n')
    assert "upgrade this astraea-local" in fails("top", "--replay", file, "--once")


def test_the_last_frame_of_a_recording(recording: Path) -> None:
    with Recording(recording) as opened:
        last = opened.frame(2)
    data = run("top", "--replay", recording, "--once", "--json")
    assert StateFrame.model_validate_json(data.stdout) == last
    text = run("top", "--replay", recording, "--once").stdout
    assert all(job.job in text for job in last.jobs)


def test_made_up_agents_once() -> None:
    ended = run("top", "--mock", "--once")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "mock-8b" in ended.stdout


@pytest.mark.e2e
def test_a_frame_of_a_server(server: Server) -> None:
    data = json.loads(run("top", server.url, "--once", "--json").stdout)
    assert data["server"] == server.state()["server"]
    lines = run("top", f"{server.url}/", "--once").stdout.splitlines()
    assert "● ready" in lines[0]
    assert any(line.startswith("SLOTS (") for line in lines)


# -- in a terminal ---------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_server_is_watched_recorded_and_left(server: Server, tmp_path: Path) -> None:
    """Leaving asks nothing: the server is not this command's."""
    file = tmp_path / "r.jsonl.gz"
    with Terminal("top", server.url, "--record", file) as terminal:
        terminal.until("● ready")
        terminal.press("q")
        code, lines = terminal.end()
    with Recording(file) as recording:
        assert (code, lines) == (0, [f"{len(recording)} frames in {file}"])
        assert recording.frame(0).server.pid == server.engine_pid()


def test_readonly_refuses_actions() -> None:
    with Terminal("top", "--mock", "--readonly") as terminal:
        terminal.until("mock-8b")
        terminal.press("i")
        terminal.until("read-only: started with --readonly")
        terminal.press("q")
        assert terminal.end() == (0, [])


def test_a_recording_is_played(recording: Path) -> None:
    with Terminal("top", "--replay", recording) as terminal:
        terminal.until("recording 3/3")
        terminal.press("q")
        assert terminal.end() == (0, [])


def test_a_recording_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("hours of work")
    for name, words in (
        ("none/r.jsonl", "cannot be written: No such file or directory: choose another place"),
        ("mine.jsonl", "exists already: choose another name or remove it"),
    ):
        with Terminal("top", "--record", tmp_path / name) as terminal:
            assert terminal.end() == (2, [f"astraea-local: {tmp_path / name}: {words}"])
    assert (tmp_path / "mine.jsonl").read_text() == "hours of work"


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "astraea-local" / "keys.toml"
    file.parent.mkdir()
    file.write_text('[keys]\npark = "quickly"\n')
    with Terminal("top", "--mock", environment={"XDG_CONFIG_HOME": str(tmp_path)}) as terminal:
        code, (line,) = terminal.end()
    assert code == 2
    assert line.startswith(f"astraea-local: {file}: keys.park: 'quickly' is no key")
