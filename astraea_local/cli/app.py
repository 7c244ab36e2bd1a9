"""The `astraea-local` command itself; commands add themselves to `app`."""

from typing import Annotated

import typer

from astraea_local import __version__

app = typer.Typer(
    name="astraea-local",
    help="Hosts one GGUF model for many local agents at once.",
    epilog="Example: astraea-local serve --model qwen3-8b-q4_k_m.gguf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
