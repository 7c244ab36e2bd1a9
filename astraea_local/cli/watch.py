"""`astraea-local ps` and `policy`: a running server, seen and changed from outside."""

import json
from typing import Annotated

import typer
from rich.table import Table

from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_URL, AsJson, fail, key_headers, message_of, out
from astraea_local.frame import StateFrame
from astraea_local.tui.render import job_table


@app.command(epilog="Example: astraea-local ps --json | jq '.jobs[].state'")
def ps(
    url: Annotated[str, typer.Argument(help="The server.")] = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Shows the jobs of a running server."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/astraea/v1/state", headers=key_headers(), timeout=5)
        answer.raise_for_status()
        frame = StateFrame.model_validate_json(answer.content)
    except httpx.HTTPStatusError as error:
        fail(f"{url}: {message_of(error.response)}", code=1)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no server answers at {url} ({error}): start one with `astraea-local serve`", code=1)
    except ValueError:
        fail(f"{url} is not an astraea-local server of this version", code=1)
    if as_json:
        typer.echo(frame.model_dump_json(indent=2))
    else:
        out.print(job_table(frame))


@app.command(epilog="Example: astraea-local policy fcfs")
def policy(
    name: Annotated[str | None, typer.Argument(help="Without it the policies are listed.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Shows or changes the scheduling policy of a running server."""
    import httpx

    where = f"{url.rstrip('/')}/astraea/v1/policy"
    try:
        if name is not None:
            httpx.post(where, json={"policy": name}, headers=key_headers(), timeout=5).raise_for_status()
        answer = httpx.get(where, headers=key_headers(), timeout=5).raise_for_status().json()
    except httpx.HTTPStatusError as error:
        fail(message_of(error.response))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no server answers at {url} ({error}): start one with `astraea-local serve`", code=1)
    except ValueError:
        fail(f"{url} is not an astraea-local server of this version", code=1)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    table = Table("", "POLICY", "WHAT IT DOES", box=None)
    for known in answer["policies"]:
        mark = "*" if known["name"] == answer["policy"] else ""
        table.add_row(mark, known["name"], known["summary"])
    out.print(table)
