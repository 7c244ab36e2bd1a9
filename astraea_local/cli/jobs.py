"""`astraea-local job` and `scheduler`: what a user does with a running server's jobs."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_URL, AsJson, fail, key_headers, message_of

job_app = typer.Typer(
    help="Acts on one job of a running server; `ps` lists them.",
    epilog="Example: astraea-local job park coder-1",
    no_args_is_help=True,
    rich_markup_mode=None,
)
scheduler_app = typer.Typer(
    help="Pauses and resumes the scheduler of a running server.",
    epilog="Example: astraea-local scheduler pause",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(job_app, name="job")
app.add_typer(scheduler_app, name="scheduler")

Job = Annotated[str, typer.Argument(help="The job's name.")]
Url = Annotated[str, typer.Option(help="The server.")]


@job_app.command(epilog="Example: astraea-local job pin coder-1")
def pin(job: Job, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Keeps its KV in its slot."""
    _act(url, job, "pin", as_json=as_json)


@job_app.command(epilog="Example: astraea-local job unpin coder-1")
def unpin(job: Job, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Lets its KV be moved again."""
    _act(url, job, "unpin", as_json=as_json)


@job_app.command(epilog="Example: astraea-local job park coder-1")
def park(job: Job, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Moves its KV out of its slot now."""
    _act(url, job, "park", as_json=as_json)


@job_app.command(epilog="Example: astraea-local job drop coder-1")
def drop(job: Job, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Forgets its KV; its next request computes it again."""
    _act(url, job, "drop", as_json=as_json)


@job_app.command(epilog="Example: astraea-local job cancel coder-1")
def cancel(job: Job, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Ends its requests with an error."""
    _act(url, job, "cancel", as_json=as_json)


@job_app.command(
    epilog="Example: astraea-local job priority coder-1 2", context_settings={"ignore_unknown_options": True}
)
def priority(
    job: Job,
    value: Annotated[int, typer.Argument(min=-9, max=9, help="Queues up, or down when negative.")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Moves it up or down by so many queues."""
    _act(url, job, "priority", {"priority": value}, as_json=as_json)


@scheduler_app.command(epilog="Example: astraea-local scheduler pause")
def pause(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Admits nothing new; what runs goes on."""
    _post(url, "scheduler/pause", as_json=as_json)


@scheduler_app.command(epilog="Example: astraea-local scheduler resume")
def resume(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Admits again."""
    _post(url, "scheduler/resume", as_json=as_json)


def _act(url: str, job: str, action: str, body: dict[str, Any] | None = None, *, as_json: bool) -> None:
    _post(url, f"jobs/{quote(job, safe='')}/{action}", body, as_json=as_json)


def _post(url: str, path: str, body: dict[str, Any] | None = None, *, as_json: bool) -> None:
    import httpx

    try:
        where = f"{url.rstrip('/')}/astraea/v1/{path}"
        answer = httpx.post(where, json=body, headers=key_headers(), timeout=35)
        done = answer.raise_for_status().json()
    except httpx.HTTPStatusError as error:
        fail(message_of(error.response), code=1 if error.response.status_code >= 500 else 2)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no server answers at {url} ({error}): start one with `astraea-local serve`", code=1)
    except ValueError:
        fail(f"{url} is not an astraea-local server of this version", code=1)
    typer.echo(json.dumps(done, indent=2) if as_json else done["done"])
