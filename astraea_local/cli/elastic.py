"""`astraea-local resize`, `pause` and `resume`: the memory of a running server."""

import json
from typing import Annotated, Any

import typer

from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_URL, AsJson, fail, key_headers, message_of, out

# A context of many GB, or a model that is read from disk again, takes its time.
_TIMEOUT_S = 600.0

Url = Annotated[str, typer.Option(help="The server.")]


@app.command(epilog="Example: astraea-local resize --ctx 16384 --slots 8")
def resize(
    ctx: Annotated[int | None, typer.Option(help="KV cells in total.")] = None,
    slots: Annotated[int | None, typer.Option(help="Segments running at the same time.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Gives a running server a context of another size; its agents go on where they were."""
    if ctx is None and slots is None:
        fail("nothing to change: give --ctx, --slots or both")
    wanted = {"size": ctx, "slots": slots}
    _post(url, "context", {k: v for k, v in wanted.items() if v is not None}, as_json=as_json)


@app.command(epilog="Example: astraea-local pause; play-a-game; astraea-local resume")
def pause(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Unloads the model of a running server, so that other programs have its memory; requests wait."""
    _post(url, "pause", {}, as_json=as_json)


@app.command(epilog="Example: astraea-local resume")
def resume(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Loads the model of a paused server again; its agents go on where they were."""
    _post(url, "resume", {}, as_json=as_json)


def _post(url: str, what: str, body: dict[str, Any], *, as_json: bool) -> None:
    import httpx

    try:
        where = f"{url.rstrip('/')}/astraea/v1/{what}"
        answer = httpx.post(where, json=body, headers=key_headers(), timeout=_TIMEOUT_S)
        answer.raise_for_status()
        done = answer.json()
    except httpx.HTTPStatusError as error:
        fail(message_of(error.response))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no server answers at {url} ({error}): start one with `astraea-local serve`", code=1)
    out.print(json.dumps(done, indent=2) if as_json else done["done"], soft_wrap=True)
