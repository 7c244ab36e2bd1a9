"""`astraea-local history`: jobs that ended, from the file that servers write."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from astraea_local.cli.app import app
from astraea_local.cli.shared import AsJson, fail, out
from astraea_local.past_jobs import Page, Query, as_csv, read
from astraea_local.tui.render import seconds


@app.command(epilog="Example: astraea-local history --sort jct_s --limit 10")
def history(
    limit: Annotated[int, typer.Option(help="Most jobs to show.")] = 100,
    offset: Annotated[int, typer.Option(help="Jobs to skip.")] = 0,
    sort: Annotated[str, typer.Option(help="A column of --csv.")] = "ended",
    order: Annotated[str, typer.Option(help="asc or desc.")] = "desc",
    job: Annotated[str, typer.Option(help="Only names that contain this.")] = "",
    path: Annotated[Path | None, typer.Option("--history", help="Another history file.")] = None,
    as_json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Shows past jobs; no server is needed."""
    from astraea_local.history import HistoryError, default_path

    if as_json and csv:
        fail("--json and --csv exclude each other")
    values = {"limit": limit, "offset": offset, "sort": sort, "order": order, "job": job}
    try:
        page = read(path or default_path(), Query.model_validate(values))
    except ValidationError as error:
        fault = error.errors()[0]
        fail(f"--{fault['loc'][0]}: {fault['msg']}")
    except HistoryError as error:
        fail(str(error))
    if as_json:
        typer.echo(page.model_dump_json(indent=2))
    elif csv:
        typer.echo(as_csv(page.jobs), nl=False)
    else:
        _print(page)


def _print(page: Page) -> None:
    table = Table("JOB", "ENDED", "JCT", "CALLS", "TOOLS", "QUEUED", "TOKENS", "CACHED", "OUTCOME", box=None)
    for job in page.jobs:
        ended = datetime.fromtimestamp(job.ended).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        tokens = f"{job.prompt_tokens}+{job.output_tokens}"
        times = (seconds(job.jct_s), str(job.segments), seconds(job.tool_s), seconds(job.queued_s))
        cells = (job.job, ended, *times, tokens, f"{job.cached_share:.0%}", job.outcome)
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)
    if page.total > len(page.jobs):
        out.print(f"{len(page.jobs)} of {page.total} jobs; more with --offset and --limit")
