"""The snippets of docs/clients.md, read from it and run."""

import json
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from astraea_local.frame import StateFrame
from tests.conftest import Server, StartServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:8080"
# Whatever a client says, the model sees this: a small one gets lost in the thousands of tokens of an agent.
POLITE = (
    "{% for i in range(6) %}{{ '<|im_start|>user\\nSay hello.<|im_end|>\\n' }}"
    "{{ '<|im_start|>assistant\\nHello!<|im_end|>\\n' if i < 5 else '<|im_start|>assistant\\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class Program:
    """A client with a command line, and what is said to it."""

    heading: str
    language: str
    """Of its snippet, which is a command to be completed, or a file of settings."""
    command: str
    job: str
    """A pattern of the names of its jobs."""
    settings: str = ""
    """Where a file of settings belongs, within the home folder."""


PROGRAMS = (
    Program(
        "Codex",
        "toml",
        "codex exec --skip-git-repo-check --sandbox read-only 'Say hello.' </dev/null",
        r"[0-9a-f-]{36}",
        ".codex/config.toml",
    ),
    Program("Claude Code", "bash", "claude -p 'Say hello.' </dev/null", r"[0-9a-f-]{36}"),
    Program("opencode", "json", "opencode run 'Say hello.' </dev/null", r"ses_\w+", "opencode.json"),
    Program(
        "aider",
        "bash",
        "aider --message 'Say hello.' --yes-always --no-git --no-check-update --analytics-disable",
        r"job-\d+",
    ),
)
# Nothing but the answer is of interest, and nobody but the server is to be asked.
QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "NO_COLOR": "1",
    "TERM": "dumb",
}


def snippets(language: str) -> list[Any]:
    """Blocks of a language, each with the heading that it stands under."""
    found: list[Any] = []
    heading = ""
    for part in re.split(r"^(?=```|## )", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if part.startswith("## "):
            heading = part.splitlines()[0].removeprefix("## ")
        if part.startswith(f"```{language}\n"):
            name = f"{heading}-{len(found)}"
            found.append(pytest.param(part.removeprefix(f"```{language}\n"), id=name))
    return found


@pytest.mark.e2e
@pytest.mark.usefixtures("swept")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("code", snippets("python"))
def test_python(code: str, roomy: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ADDRESS in code
    # A real file, because smolagents reads the source of its tools.
    snippet = tmp_path / "snippet.py"
    snippet.write_text(code.replace(ADDRESS, roomy.url), encoding="utf-8")
    runpy.run_path(str(snippet))
    assert capsys.readouterr().out.strip()


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("code", [s for s in snippets("bash") if str(s.id).startswith("curl")])
def test_curl(code: str, roomy: Server) -> None:
    command = ["bash", "-ec", code.replace(ADDRESS, roomy.url)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert '"role": "assistant"' in out or '"role":"assistant"' in out


@pytest.fixture(scope="module")
def terse(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """SmolLM2 behind a template that makes it say hello; its jobs have all the room it was trained for."""
    folder = tmp_path_factory.mktemp("terse")
    (folder / "template.jinja").write_text(POLITE)
    file = folder / "terse.toml"
    file.write_text(
        f'[model]\nchat_template = "{folder / "template.jinja"}"\n'
        '[context]\nsize = 16384\nslots = 2\n[kv]\nlayout = "per_slot"\n'
    )
    return start_server("--profile", str(file))


@pytest.mark.e2e
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.heading)
def test_programs(program: Program, terse: Server, tmp_path: Path) -> None:
    name = program.command.split()[0]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    (snippet,) = (
        s.values[0] for s in snippets(program.language) if str(s.id).startswith(f"{program.heading}-")
    )
    snippet = snippet.replace(ADDRESS, terse.url)
    command = program.command
    if program.settings:
        file = tmp_path / program.settings
        file.parent.mkdir(exist_ok=True)
        file.write_text(snippet)
    else:
        # What the snippet begins goes on with what is said.
        command = snippet.rstrip() + command.removeprefix(name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "OPENAI_", "ANTHROPIC_"))}
    home = {"HOME": str(tmp_path), "CODEX_HOME": str(tmp_path / ".codex")}
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        env=environment | QUIET | home,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout.lower()
    jobs = StateFrame.model_validate(terse.state()).jobs
    assert any(re.fullmatch(program.job, row.job) and row.segments for row in jobs), jobs


def test_configurations_are_well_formed() -> None:
    (codex,) = (tomllib.loads(s.values[0]) for s in snippets("toml"))
    assert codex["model_providers"][codex["model_provider"]]["wire_api"] == "responses"
    (opencode,) = (json.loads(s.values[0]) for s in snippets("json"))
    provider, model = opencode["model"].split("/")
    assert model in opencode["provider"][provider]["models"]
    (proceed,) = (yaml.safe_load(s.values[0]) for s in snippets("yaml"))
    assert proceed["models"][0]["apiBase"] == f"{ADDRESS}/v1"
