"""What commands share: options, consoles, errors, progress bars, settings and the model file."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from astraea_local import profile as profiles
from astraea_local.model_source import ModelSourceError, resolve
from astraea_local.profile import Profile, ProfileError

DEFAULT_PROFILE = "smollm2-cpu"
DEFAULT_URL = "http://127.0.0.1:8080"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ProfileName = Annotated[str, typer.Option("--profile", help="A shipped profile's name, or a .toml file.")]

# Names come from files and clients: what looks like markup in them is none.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)


def fail(message: str, code: int = 2) -> NoReturn:
    print(f"astraea-local: {message}", file=sys.stderr)
    raise typer.Exit(code)


def load_profile(name: str) -> Profile:
    try:
        return profiles.load(name)
    except ProfileError as error:
        fail(str(error))


def settle(profile: str, changes: dict[str, Any]) -> tuple[Profile, Path]:
    """The profile with what was given on the command line (not None), and its model's file."""
    try:
        settings = profiles.override(
            profiles.load(profile), {k: v for k, v in changes.items() if v is not None}
        )
        return settings, fetch(settings.model.source)
    except (ProfileError, ModelSourceError) as error:
        fail(str(error))


def fetch(source: str) -> Path:
    """The model file; a download shows its progress."""
    with progress_bar("downloading") as progress:
        bars: list[Any] = []

        def report(done: int, total: int | None) -> None:
            if not bars:
                bars.append(progress.add_task(source, total=total))
            progress.update(bars[0], completed=done, total=total)

        return resolve(source, on_progress=report)


def progress_bar(what: str) -> Progress:
    columns = [TextColumn(what), TextColumn("{task.description}", markup=False), BarColumn()]
    if what == "downloading":
        columns += [DownloadColumn(), TimeRemainingColumn()]
    else:
        columns.append(TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def key_headers() -> dict[str, str]:
    """The API key of ASTRAEA_API_KEY, for servers that need one."""
    key = os.environ.get("ASTRAEA_API_KEY", "").rpartition(":")[2].strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def message_of(response: Any) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
