"""The snippets of docs/clients.md, read from it and run."""

import json
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Server

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:8080"


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


def test_configurations_are_well_formed() -> None:
    (codex,) = (tomllib.loads(s.values[0]) for s in snippets("toml"))
    assert codex["model_providers"][codex["model_provider"]]["wire_api"] == "responses"
    (opencode,) = (json.loads(s.values[0]) for s in snippets("json"))
    provider, model = opencode["model"].split("/")
    assert model in opencode["provider"][provider]["models"]
    (proceed,) = (yaml.safe_load(s.values[0]) for s in snippets("yaml"))
    assert proceed["models"][0]["apiBase"] == f"{ADDRESS}/v1"
