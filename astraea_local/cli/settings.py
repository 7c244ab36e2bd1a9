"""`astraea-local profiles` and `doctor`: what is set, and whether it fits this machine."""

import json
from typing import Annotated

import typer
from rich.table import Table

from astraea_local import profile as profiles
from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_PROFILE, AsJson, ProfileName, load_profile, out

profiles_app = typer.Typer(
    help="Lists, shows and checks profiles.",
    epilog="Example: astraea-local profiles list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(profiles_app, name="profiles")


@profiles_app.command("list", epilog="Example: astraea-local profiles list")
def profiles_list(as_json: AsJson = False) -> None:
    """Lists the shipped profiles."""
    found = [profiles.load(name) for name in profiles.shipped()]
    if as_json:
        typer.echo(json.dumps([{"name": p.name, "description": p.description} for p in found], indent=2))
        return
    table = Table("NAME", "MODEL", "CONTEXT", "SLOTS", "DESCRIPTION", box=None)
    for p in found:
        table.add_row(p.name, p.model.source, str(p.context.size), str(p.context.slots), p.description)
    out.print(table)


@profiles_app.command("show", epilog="Example: astraea-local profiles show gpu-24g")
def profiles_show(name: Annotated[str, typer.Argument()] = DEFAULT_PROFILE, as_json: AsJson = False) -> None:
    """Shows every setting of a profile, with what it means."""
    profile = load_profile(name)
    if as_json:
        typer.echo(profile.model_dump_json(indent=2))
        return
    table = Table("FIELD", "VALUE", "MEANING", box=None)
    for field, value, text in profiles.fields(profile):
        table.add_row(field, json.dumps(value), " ".join(text.split()))
    out.print(table)


@profiles_app.command("check", epilog="Example: astraea-local profiles check mine.toml")
def profiles_check(file: Annotated[str, typer.Argument(help="A .toml file.")]) -> None:
    """Says whether a profile is valid; exit code 2 when it is not."""
    profile = load_profile(file)
    typer.echo(f"{file}: valid ({profile.name})")


@app.command(epilog="Example: astraea-local doctor --profile gpu-24g")
def doctor(profile: ProfileName = DEFAULT_PROFILE, as_json: AsJson = False) -> None:
    """Prints what was found on this machine, what fits, and what to change; exit code 1 on an error."""
    from astraea_local import doctor as examination

    report = examination.examine(load_profile(profile))
    typer.echo(report.model_dump_json(indent=2) if as_json else examination.render(report))
    if report.worst == "error":
        raise typer.Exit(1)
