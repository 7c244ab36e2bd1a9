"""The command line. Importing it registers every command, in the order of `--help`."""

from astraea_local.bench.commands import bench_app

from astraea_local.cli import serve as serve  # isort: skip
from astraea_local.cli import top as top  # isort: skip
from astraea_local.cli import watch as watch  # isort: skip
from astraea_local.cli import elastic as elastic  # isort: skip
from astraea_local.cli import jobs as jobs  # isort: skip
from astraea_local.cli import past as past  # isort: skip
from astraea_local.cli import measure as measure  # isort: skip
from astraea_local.cli import kv as kv  # isort: skip
from astraea_local.cli import settings as settings  # isort: skip
from astraea_local.cli.app import app

__all__ = ["app", "main"]

app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point of the `astraea-local` command."""
    app()
