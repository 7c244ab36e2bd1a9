"""`astraea-local kv`: the KV states on disk, listed, removed and summed up, with or without a server."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_URL, AsJson, err, fail, key_headers, out
from astraea_local.frame import KvRow, StateFrame

if TYPE_CHECKING:
    from astraea_local.engine.kv.survey import Entry

kv_app = typer.Typer(
    help="The KV states of waiting agents on disk.",
    epilog="Example: astraea-local kv ls",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(kv_app, name="kv")

Folder = Annotated[
    Path | None, typer.Option("--path", help="Another folder than the user's cache (retention.disk_path).")
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SHOWN_ID = 12


@kv_app.command("ls", epilog="Example: astraea-local kv ls --json | jq '.[].job'")
def kv_ls(
    path: Folder = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read the states too, not only the headers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lists the states, the last used first."""
    from astraea_local.engine.kv.survey import survey

    found = survey(_root(path), check=check)
    if as_json:
        typer.echo(json.dumps([_plain(entry) for entry in found], indent=2))
        return
    if not found:
        out.print(f"no KV states in {_root(path)}", soft_wrap=True)
        return
    table = Table("ID", "MODEL", "JOB", "TOKENS", "SIZE", "USED", "STATUS", box=None)
    now = time.time()
    for entry in found:
        table.add_row(
            entry.id[:_SHOWN_ID],
            entry.model or "-",
            entry.job or "-",
            f"{entry.tokens:,}",
            decimal(entry.bytes),
            f"{_age(now - entry.used_at)} ago",
            entry.problem or "ok",
        )
    out.print(table)


@kv_app.command("rm", epilog="Example: astraea-local kv rm --older-than 7d")
def kv_rm(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids, or their beginnings.")] = None,
    job: Annotated[str | None, typer.Option(help="Only this job's states.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Only states unused for 30m, 12h, 7d, 2w.")] = None,
    unusable: Annotated[bool, typer.Option("--unusable", help="Only what no server can use.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every state of every model.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    path: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Removes the states that all given conditions name, and those that continue them.

    Safe while a server runs: it computes again what it does not find.
    """
    from astraea_local.engine.kv.survey import SelectionError, remove, select, survey

    limited = bool(ids) or job is not None or older_than is not None or unusable
    if everything and limited:
        fail("--all removes everything: leave it out to remove only some states")
    if not everything and not limited:
        fail("nothing to remove was named: give ids, --job, --older-than, --unusable, or --all")
    since = None if older_than is None else time.time() - _seconds(older_than)
    entries = survey(_root(path))
    try:
        chosen = select(entries, ids=ids or (), job=job, unused_since=since, unusable=unusable)
    except SelectionError as error:
        fail(str(error))
    size = decimal(sum(entry.bytes for entry in chosen))
    if everything and chosen and not yes:
        _confirm(f"remove all {len(chosen)} KV states ({size}) in {_root(path)}?")
    removed, errors = remove(chosen)
    for line in errors:
        err.print(f"astraea-local: {line}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps([_plain(entry) for entry in removed], indent=2))
    else:
        out.print(f"{len(removed)} removed, {decimal(sum(entry.bytes for entry in removed))}")
    if errors:
        raise typer.Exit(1)


@kv_app.command("stats", epilog="Example: astraea-local kv stats --json")
def kv_stats(
    path: Folder = None,
    url: Annotated[str, typer.Option(help="A server that may be running.")] = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Sums the states up by model, and shows the KV counters of a server if one runs."""
    from astraea_local.engine.kv.survey import survey

    found = survey(_root(path))
    models = [
        _summary(name, [e for e in found if e.model == name]) for name in sorted({e.model for e in found})
    ]
    server = _running(url)
    if as_json:
        whole = {"path": str(_root(path)), "models": models, "server": server and server.model_dump()}
        typer.echo(json.dumps(whole, indent=2))
        return
    out.print(f"{_root(path)}: {len(found)} states, {decimal(sum(e.bytes for e in found))}", soft_wrap=True)
    if models:
        table = Table("MODEL", "STATES", "JOBS", "TOKENS", "SIZE", "UNUSABLE", "LAST USED", box=None)
        for row in models:
            table.add_row(
                row["model"] or "-",
                f"{row['states']:,}",
                f"{row['jobs']:,}",
                f"{row['tokens']:,}",
                decimal(row["bytes"]),
                f"{row['unusable']:,}",
                f"{_age(time.time() - row['used_at'])} ago",
            )
        out.print(table)
    if server is None:
        out.print(f"no server answers at {url}", soft_wrap=True)
    else:
        out.print(_server_table(url, server))


def _root(path: Path | None) -> Path:
    from astraea_local.engine.kv.folder import default_root

    root = (path or default_root()).expanduser()
    if path is not None and not root.is_dir():
        fail(f"--path {path}: no such folder")
    return root


def _plain(entry: "Entry") -> dict[str, Any]:
    return {**asdict(entry), "path": str(entry.path)}


def _summary(name: str, entries: list["Entry"]) -> dict[str, Any]:
    return {
        "model": name,
        "states": len(entries),
        "jobs": len({entry.job for entry in entries if entry.job}),
        "tokens": sum(entry.tokens for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
        "unusable": sum(bool(entry.problem) for entry in entries),
        "used_at": max(entry.used_at for entry in entries),
    }


def _running(url: str) -> KvRow | None:
    """The KV counters of the server at `url`; None when there is none, or another one."""
    import httpx

    try:
        where = f"{url.rstrip('/')}/astraea/v1/state"
        answer = httpx.get(where, headers=key_headers(), timeout=5).raise_for_status()
        return StateFrame.model_validate_json(answer.content).kv
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None


def _server_table(url: str, kv: KvRow) -> Table:
    table = Table(f"SERVER {url}", "STATES", "SIZE", "BUDGET", "COUNTERS", box=None)
    table.add_row(
        "ram",
        f"{kv.ram_states:,}",
        decimal(kv.ram_bytes),
        decimal(kv.ram_budget_bytes),
        f"{kv.parks:,} parked, {kv.restores:,} restored, {kv.restore_failures:,} failed",
    )
    table.add_row(
        "disk",
        f"{kv.disk_states:,}",
        decimal(kv.disk_bytes),
        decimal(kv.disk_budget_bytes),
        f"{kv.disk_writes:,} written, {kv.disk_reads:,} read, {kv.disk_failures:,} failed",
    )
    return table


def _seconds(text: str) -> float:
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())) is None:
        fail(f"--older-than {text!r}: give a number and one of s, m, h, d, w, as in 12h")
    return float(match[1]) * _UNITS[match[2]]


def _age(seconds: float) -> str:
    unit = next((u for u in ("d", "h", "m") if seconds >= 2 * _UNITS[u]), "s")
    return f"{max(0.0, seconds) / _UNITS[unit]:.0f} {unit}"


def _confirm(question: str) -> None:
    if not err.is_terminal:
        fail(f"{question} There is nobody to ask: add --yes")
    typer.confirm(question, abort=True, err=True)
