"""`astraea-local kv` as a user meets it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from astraea_local.engine.kv.disk import DiskStore
from astraea_local.frame import KvRow, SpeedRow, StateFrame, Totals
from astraea_local.frame import ServerInfo as Info
from tests.conftest import free_port
from tests.engine.kv.states import IDENTITY, part, part_id, settle
from tests.test_cli import fails, run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two states of `coder`, used long ago, and one damaged of `[bold]tester`."""
    store = DiskStore(tmp_path / "kv", IDENTITY, 1 << 20, model="one.gguf")
    store.open()
    store.write(*part(1, at=1e9))
    store.write(*part(2, parent=part_id(1), at=1e9 + 1))
    store.write(*part(3, job="[bold]tester", at=4e9))
    settle(store)
    store.close(timeout_s=30)
    file = store.folder / f"{part_id(3)}.kv"
    whole = bytearray(file.read_bytes())
    whole[-100] ^= 1
    file.write_bytes(whole)
    return tmp_path / "kv"


def _listed(root: Path) -> list[str]:
    entries = json.loads(run("kv", "ls", "--json", "--path", root).stdout)
    return [entry["id"] for entry in entries]


@pytest.mark.parametrize("command", ["kv", "kv ls", "kv rm", "kv stats"])
def test_help_has_an_example(command: str) -> None:
    ended = run(*command.split(), "--help")
    assert ended.returncode == 0
    assert f"Example: astraea-local {command}" in ended.stdout


def test_states_are_listed(root: Path) -> None:
    table = run("kv", "ls", "--path", root).stdout.splitlines()
    assert table[0].split() == ["ID", "MODEL", "JOB", "TOKENS", "SIZE", "USED", "STATUS"]
    row = next(line for line in table if part_id(1)[:12] in line)
    assert "one.gguf" in row
    assert "coder" in row
    assert " ok" in row
    assert any("[bold]tester" in line for line in table)
    checked = json.loads(run("kv", "ls", "--check", "--json", "--path", root).stdout)
    by_id = {entry["id"]: entry for entry in checked}
    assert by_id[part_id(3)]["problem"] == "damaged state"
    assert by_id[part_id(2)]["parent"] == part_id(1)
    assert Path(by_id[part_id(1)]["path"]).stat().st_size == by_id[part_id(1)]["bytes"]


def test_an_empty_cache_says_so(tmp_path: Path) -> None:
    ended = run("kv", "ls", "--path", tmp_path)
    assert (ended.returncode, ended.stdout) == (0, f"no KV states in {tmp_path}\n")
    assert json.loads(run("kv", "ls", "--json", "--path", tmp_path).stdout) == []


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([part_id(2)[:10]], {1, 3}),
        ([part_id(1)], {3}),
        (["--job", "coder"], {3}),
        (["--job", "nobody"], {1, 2, 3}),
        (["--older-than", "7d"], {3}),
        (["--older-than", "7d", "--job", "[bold]tester"], {1, 2, 3}),
        (["--all", "--yes"], set()),
    ],
)
def test_what_is_named_is_removed(root: Path, options: list[str], left: set[int]) -> None:
    ended = run("kv", "rm", *options, "--path", root)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{3 - len(left)} removed" in ended.stdout
    assert set(_listed(root)) == {part_id(number) for number in left}


def test_the_removed_are_told_to_scripts(root: Path) -> None:
    ended = run("kv", "rm", part_id(1), "--json", "--path", root)
    assert {entry["id"] for entry in json.loads(ended.stdout)} == {part_id(1), part_id(2)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to remove was named: give ids, --job"),
        (["--all", "--job", "coder"], "--all removes everything: leave it out"),
        (["--older-than", "soon"], "--older-than 'soon': give a number and one of s, m, h, d, w"),
        (["xyz"], "no state's id begins with 'xyz': see `astraea-local kv ls`"),
        (["--all"], "There is nobody to ask: add --yes"),
    ],
)
def test_a_wrong_removal_removes_nothing(root: Path, options: list[str], words: str) -> None:
    assert words in fails("kv", "rm", *options, "--path", root)
    assert len(_listed(root)) == 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for command in ("ls", "stats"):
        assert fails("kv", command, "--path", tmp_path / "gone") == f"--path {tmp_path}/gone: no such folder"


def test_stats_without_a_server(root: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = run("kv", "stats", "--path", root, "--url", url)
    assert f"{root}: 3 states" in ended.stdout
    assert f"no server answers at {url}" in ended.stdout
    data = json.loads(run("kv", "stats", "--path", root, "--url", url, "--json").stdout)
    (model,) = data["models"]
    assert (model["model"], model["states"], model["jobs"], model["tokens"]) == ("one.gguf", 3, 2, 21)
    assert model["bytes"] == sum(path.stat().st_size for path in root.rglob("*.kv"))
    assert data["server"] is None


@pytest.fixture
def server_url() -> Iterator[str]:
    """Answers with one StateFrame."""
    kv = KvRow(
        cells_used=1,
        cells_total=2,
        ram_bytes=3,
        ram_budget_bytes=4,
        ram_states=5,
        parks=6,
        restores=7,
        restore_failures=8,
        evictions=9,
        park_s=0,
        restore_s=0,
        disk_states=1234,
        disk_writes=4321,
    )
    info = Info(
        version="1",
        model="m",
        model_class="attention",
        profile="p",
        policy="astraea",
        layout="unified",
        slots=1,
        context=256,
        job_context=256,
        offloaded="none",
        pid=1,
    )
    speed = SpeedRow(prefill_tokens_s=1, decode_step_s=1, decode_tokens_s=1, width=1)
    frame = StateFrame(
        at=0,
        uptime_s=0,
        server=info,
        jobs=[],
        queue=[],
        slots=[],
        kv=kv,
        speed=speed,
        steps={},
        totals=Totals(),
        events=[],
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = frame.model_dump_json().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_stats_show_the_counters_of_a_server(root: Path, server_url: str) -> None:
    table = run("kv", "stats", "--path", root, "--url", server_url).stdout
    assert "6 parked, 7 restored, 8 failed" in table
    assert "1,234" in table
    assert "4,321 written" in table
    data = json.loads(run("kv", "stats", "--path", root, "--url", server_url, "--json").stdout)
    assert KvRow.model_validate(data["server"]).restore_failures == 8
