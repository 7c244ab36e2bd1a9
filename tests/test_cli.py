"""The command line as a user meets it: a process with arguments, an exit code, and few lines."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from astraea_local import __version__
from astraea_local.doctor import Report
from astraea_local.frame import StateFrame
from astraea_local.history import History
from astraea_local.profile import Profile, shipped
from tests.conftest import Server, free_port
from tests.test_history import SEGMENT

COMMANDS = ["", "serve", "top", "ps", "policy", "calibrate", "predictor", "predictor report"]
COMMANDS += ["job", "job pin", "job unpin", "job park", "job drop", "job cancel", "job priority"]
COMMANDS += ["scheduler", "scheduler pause", "scheduler resume", "history", "bench", "bench sim"]
COMMANDS += ["resize", "pause", "resume", "kv", "kv ls", "kv rm", "kv stats"]
COMMANDS += ["profiles", "profiles list", "profiles show", "profiles check", "doctor"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end."""
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "astraea_local", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "300", "PYTHONPATH": str(root)},
    )


def fails(*arguments: str | Path, code: int = 2, cwd: Path | None = None) -> str:
    """The one line on stderr of a command that must fail with this exit code."""
    ended = run(*arguments, cwd=cwd)
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("astraea-local: ")
    return line.removeprefix("astraea-local: ")


def serve_fails(*arguments: str | Path) -> str:
    """The one line of a server that cannot start."""
    return fails("serve", "--no-tui", "--port", str(free_port()), *arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    """Every command shows how it is used, with an example that begins with that command."""
    ended = run(*command.split(), "--help")
    assert ended.returncode == 0
    (example,) = (line.strip() for line in ended.stdout.splitlines() if "Example: " in line)
    assert example.startswith(f"Example: astraea-local {command}")


def test_version() -> None:
    """The version is one line."""
    ended = run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"{__version__}\n")


def test_a_wrong_option_is_a_usage_error() -> None:
    """Exit code 2, and a hint where to look."""
    ended = run("serve", "--slot", "4")
    assert ended.returncode == 2
    assert "No such option: --slot" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_profiles_are_listed() -> None:
    """Every shipped profile is in the table and in the JSON."""
    table, data = run("profiles", "list"), run("profiles", "list", "--json")
    assert [entry["name"] for entry in json.loads(data.stdout)] == list(shipped())
    assert all(f" {name} " in table.stdout for name in shipped())
    assert all(entry["description"] in table.stdout for entry in json.loads(data.stdout))


def test_a_profile_is_shown() -> None:
    """Each field with its value and meaning; the JSON is the whole profile."""
    table = run("profiles", "show", "cpu").stdout
    row = next(line for line in table.splitlines() if "context.slots" in line)
    assert "Segments that can run at the same time." in row
    shown = Profile.model_validate_json(run("profiles", "show", "cpu", "--json").stdout)
    assert shown.name == "cpu"
    assert f" {shown.context.slots} " in row


def test_a_valid_profile_is_valid(tmp_path: Path) -> None:
    """The answer names the file and the profile."""
    file = tmp_path / "mine.toml"
    file.write_text("[context]\nslots = 2\n")
    ended = run("profiles", "check", file)
    assert (ended.returncode, ended.stdout) == (0, f"{file}: valid (mine)\n")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[server]\nport = 9000\nprot = 1\n", 3, "unknown field 'server.prot': known here are host, port"),
        ("[context]\n\nslots = 0\n", 3, "context.slots: Input should be greater than or equal to 1"),
        ('[server]\nport = "8080"\n', 2, "server.port: Input should be a valid integer"),
    ],
)
def test_a_faulty_profile_is_pointed_at(tmp_path: Path, text: str, line: int, words: str) -> None:
    """File, line, field and what is possible, for `check` as for `serve`."""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    for message in (fails("profiles", "check", file), serve_fails("--profile", file)):
        assert message.startswith(f"{file}:{line}: ")
        assert words in message


def test_a_profile_that_is_no_toml(tmp_path: Path) -> None:
    """The parser's line and column are passed on."""
    file = tmp_path / "mine.toml"
    file.write_text("[server\n")
    assert "not valid TOML" in fails("profiles", "check", file)
    assert "line 1" in fails("profiles", "check", file)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    """A name is answered with the names there are, a path with the path."""
    assert "use one of cpu, gpu-12g" in fails("profiles", "show", "gpu-1t")
    assert (
        fails("serve", "--profile", tmp_path / "gone.toml") == f"{tmp_path}/gone.toml: no such profile file"
    )


def test_a_profile_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder is no profile."""
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml: cannot be read" in serve_fails("--profile", tmp_path / "folder.toml")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--port", "99999", "server.port: Input should be less than or equal to 65535"),
        ("--slots", "0", "context.slots: Input should be greater than or equal to 1"),
        ("--policy", "random", "scheduler.policy: Input should be 'astraea', 'astraea_paper', 'fcfs'"),
        ("--kv-layout", "mixed", "kv.layout: Input should be 'auto', 'per_slot' or 'unified'"),
        ("--host", "0.0.0.0", "'0.0.0.0' can be reached by other machines: give an API key"),
        ("--host", "example.com", "'example.com' can be reached by other machines: give an API key"),
    ],
)
def test_a_bad_option_names_its_setting(option: str, value: str, words: str) -> None:
    """Values out of range are refused before anything is loaded, with what is possible."""
    assert words in fails("serve", "--no-tui", option, value)


def test_two_models_exclude_each_other() -> None:
    """Only one model is hosted."""
    assert serve_fails("--model", "a.gguf", "--hf", "b/c") == "--model and --hf exclude each other"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """The path and the setting to change."""
    message = serve_fails("--model", tmp_path / "gone.gguf")
    assert message.startswith(f"{tmp_path}/gone.gguf: no such file; set model.source")


def test_a_model_that_is_none(tmp_path: Path) -> None:
    """Whatever is not GGUF is refused by its first bytes."""
    file = tmp_path / "page.gguf"
    file.write_text("<html>")
    assert serve_fails("--model", file).startswith(f"{file}: not a GGUF file (it starts with b'<htm')")


def test_a_model_that_is_cut_off(tmp_path: Path, demo_path: Path) -> None:
    """A download that stopped half way is told from a model that is not supported."""
    file = tmp_path / "cut.gguf"
    with demo_path.open("rb") as whole:
        file.write_bytes(whole.read(3_000_000))
    message = serve_fails("--model", file)
    assert message.startswith(f"{file}: llama.cpp cannot load this model")
    assert "corrupted or incomplete" in message


def test_a_context_that_is_too_large() -> None:
    """The largest size for this model and these slots is stated."""
    message = serve_fails("--ctx", "65536", "--slots", "4")
    assert "gives each of 4 slots 16384 tokens, but the model was trained for 8192" in message
    assert "set context.size to at most 32768" in message


@pytest.mark.e2e
def test_a_port_that_is_taken(server: Server) -> None:
    """The port and the option to change it, before a second model is loaded."""
    port = str(urlsplit(server.url).port)
    message = fails("serve", "--no-tui", "--port", port)
    assert message == f"port {port} on 127.0.0.1 is in use: choose another with --port or server.port"


def test_ps_without_a_server() -> None:
    """Exit code 1, and how to start one."""
    message = fails("ps", f"http://127.0.0.1:{free_port()}", code=1)
    assert "no server answers" in message
    assert "astraea-local serve" in message


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://[::1", "http://127.0.0.1:99999"])
def test_ps_with_a_wrong_address(url: str) -> None:
    """An address that is none is one line too."""
    assert url in fails("ps", url, code=1)


@pytest.mark.e2e
def test_ps_elsewhere(server: Server) -> None:
    """Something that answers, but has no state, is not taken for a server without jobs."""
    assert "does not exist on this server" in fails("ps", f"{server.url}/v1", code=1)


@pytest.mark.e2e
def test_ps_shows_the_jobs(server: Server) -> None:
    """A row for each job, whatever its name looks like, and the whole state as JSON."""
    name = "[/red]:mad:[b]"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    httpx.post(
        f"{server.base_url}/chat/completions", json=body, headers={"X-Astraea-Job": name}, timeout=120
    ).raise_for_status()

    def state() -> StateFrame:
        return StateFrame.model_validate_json(run("ps", server.url, "--json").stdout, strict=True)

    server.wait_until(lambda: any(job.job == name and job.state == "waiting" for job in state().jobs))
    table = run("ps", server.url)
    assert table.returncode == 0
    header, *rows = table.stdout.splitlines()
    assert header.split()[:4] == ["AGENT", "STATE", "QUEUE", "TOKENS"]
    (row,) = (row for row in rows if row.startswith(name))
    assert row.removeprefix(name).split()[:2] == ["waiting", "Q0"]


@pytest.mark.e2e
def test_jobs_are_acted_on(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    httpx.post(
        f"{server.base_url}/chat/completions", json=body, headers={"X-Astraea-Job": "cli/a job"}, timeout=120
    ).raise_for_status()
    at = ("--url", server.url)
    parked = run("job", "park", "cli/a job", *at)
    assert parked.returncode == 0
    assert parked.stdout.startswith("parked ")
    lowered = run("job", "priority", "cli/a job", "-2", *at, "--json")
    assert json.loads(lowered.stdout)["done"] == "priority set to -2"
    assert fails("job", "cancel", "cli/a job", *at) == (
        "cli/a job: it has no request that is queued or running"
    )
    assert fails("job", "park", "nobody", *at) == "there is no job 'nobody'"
    assert run("scheduler", "pause", *at).stdout == "scheduling paused: nothing new is admitted\n"
    assert run("scheduler", "resume", *at).stdout == "scheduling resumed: 0 requests waited\n"


def test_actions_without_a_server() -> None:
    assert "no server answers" in fails("job", "pin", "a", "--url", f"http://127.0.0.1:{free_port()}", code=1)


def test_past_jobs_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    with History(path) as opened:
        opened.add([replace(SEGMENT, job=f"[b]job{n}", arrived=1000.0 + n) for n in range(3)])
    table = run("history", "--history", path, "--limit", "2")
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["JOB", "[b]job2", "[b]job1", "2"]
    data = json.loads(run("history", "--history", path, "--json", "--sort", "job", "--order", "asc").stdout)
    assert [job["job"] for job in data["jobs"]] == ["[b]job0", "[b]job1", "[b]job2"]
    rows = run("history", "--history", path, "--csv", "--job", "job1").stdout.splitlines()
    assert (len(rows), rows[1].split(",")[0]) == (2, "[b]job1")


def test_wrong_questions_about_past_jobs(tmp_path: Path) -> None:
    assert fails("history", "--sort", "color").startswith("--sort: ")
    assert fails("history", "--limit", "0").startswith("--limit: ")
    assert fails("history", "--json", "--csv") == "--json and --csv exclude each other"
    broken = tmp_path / "broken"
    broken.write_text("nothing of the kind" * 100)
    assert str(broken) in fails("history", "--history", broken)


def test_the_doctor_reports() -> None:
    """Text for people and the same findings as JSON for scripts."""
    text, data = run("doctor"), run("doctor", "--json")
    report = Report.model_validate_json(data.stdout)
    expected = 1 if report.worst == "error" else 0
    assert (text.returncode, data.returncode) == (expected, expected)
    assert report.profile == "smollm2-cpu"
    assert report.model is not None
    assert report.model.trained_context == 8192
    assert "smollm2-cpu, model demo" in text.stdout
    assert report.findings
    assert all(finding.severity.upper() in text.stdout for finding in report.findings)


def test_the_doctor_finds_a_missing_model(tmp_path: Path) -> None:
    """A model that is not there is an error of exit code 1, not a failure to report."""
    file = tmp_path / "mine.toml"
    file.write_text(f'[model]\nsource = "{tmp_path}/gone.gguf"\n')
    ended = run("doctor", "--profile", file, "--json")
    assert ended.returncode == 1
    report = Report.model_validate_json(ended.stdout)
    assert report.worst == "error"
    assert any("gone.gguf: no such file" in finding.text for finding in report.findings)
