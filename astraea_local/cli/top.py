"""`astraea-local top`: the terminal UI on a running server, a recording, or a mock."""

import asyncio
import contextlib
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_URL, err, fail, out
from astraea_local.tui.pace import INTERVAL_S, LEAST_INTERVAL_S, MOST_INTERVAL_S

if TYPE_CHECKING:
    import httpx

    from astraea_local.frame import StateFrame
    from astraea_local.tui.actions import Control
    from astraea_local.tui.app import Host
    from astraea_local.tui.mock import MockWorld
    from astraea_local.tui.record import Recorder
    from astraea_local.tui.source import Source

_MOCK_WARM_UP = 240


@app.command(epilog="Example: astraea-local top --record evening.jsonl.gz")
def top(
    url: Annotated[str, typer.Argument(help="The server.")] = DEFAULT_URL,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: the frame as JSON.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Write all frames to a new .jsonl or .jsonl.gz file.")
    ] = None,
    replay: Annotated[Path | None, typer.Option(help="Show a recording instead of a server.")] = None,
    mock: Annotated[bool, typer.Option("--mock", help="Show made-up agents; needs no server.")] = False,
    readonly: Annotated[bool, typer.Option("--readonly", help="Refuse what changes the server.")] = False,
    interval: Annotated[
        float,
        typer.Option(min=LEAST_INTERVAL_S, max=MOST_INTERVAL_S, help="Least seconds between frames."),
    ] = INTERVAL_S,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ASTRAEA_API_KEY", show_envvar=True, help="If the server wants one."),
    ] = None,
) -> None:
    """Watches a running server, and acts on its agents."""
    if mock and replay is not None:
        fail("--mock and --replay exclude each other")
    if record is not None and (once or mock or replay is not None):
        fail("--record needs a running server and the UI: leave out --once, --mock and --replay")
    if as_json and not once:
        fail("--json goes with --once; a stream of frames is at /astraea/v1/events")
    api_key = _key_in(api_key)
    if not mock and replay is None:
        _check(url, api_key)
    if once:
        show_once(_one_frame(url, api_key, replay, mock=mock), as_json=as_json)
    elif not (os.isatty(0) and os.isatty(1) and os.isatty(2)):
        fail("there is no terminal to draw on: use --once, or --once --json")
    else:
        _watch(url, api_key, record, replay, mock=mock, readonly=readonly, interval=interval)


def _key_in(text: str | None) -> str | None:
    """The first key of what a server takes too: `KEY` or `NAME:KEY`, several with spaces between them."""
    return next((entry.rpartition(":")[2] for entry in (text or "").split()), None)


def _check(url: str, api_key: str | None) -> None:
    from astraea_local.tui.connection import is_address

    if not is_address(url):
        fail(f"{url}: not the address of a server: write it as {DEFAULT_URL}")
    if not (api_key or "").isascii():
        fail("--api-key: a key is printable ASCII, as the server's own are")


def show_once(frame: "StateFrame", *, as_json: bool) -> None:
    """Prints a frame."""
    if as_json:
        typer.echo(frame.model_dump_json(indent=2))
        return
    from astraea_local.tui.render.once import once
    from astraea_local.tui.render.palette import PLAIN

    for row in once(frame, PLAIN, out.width):
        row.end = "\n"
        out.print(row)


def _one_frame(url: str, api_key: str | None, replay: Path | None, *, mock: bool) -> "StateFrame":
    if mock:
        return _mock_world().frame()
    from astraea_local.tui.record import RecordError

    try:
        return asyncio.run(_fetched(url, api_key)) if replay is None else _last_frame(replay)
    except RecordError as error:
        fail(str(error), code=1 if replay is None else 2)


async def _fetched(url: str, api_key: str | None) -> "StateFrame":
    import httpx

    from astraea_local.tui.connection import reason, tls_fault
    from astraea_local.tui.source import newest

    try:
        async with _client(url, api_key) as client:
            return await newest(client)
    except httpx.ConnectError as error:
        remedy = "" if tls_fault(error) else ": start one with `astraea-local serve`"
        fail(f"{url}: {reason(error)}{remedy}", code=1)
    except httpx.HTTPError as error:
        fail(f"{url}: {reason(error)}", code=1)


def _client(url: str, api_key: str | None, certificate: Path | None = None) -> "httpx.AsyncClient":
    from astraea_local.tui.connection import open_client

    try:
        return open_client(url, api_key, certificate)
    except OSError as error:
        fail(f"{certificate or 'SSL_CERT_FILE'}: not a certificate in PEM form: {error}")


def _last_frame(file: Path) -> "StateFrame":
    from astraea_local.tui.record import Recording

    with Recording(file) as recording:
        return recording.frame(len(recording) - 1)


def _mock_world() -> "MockWorld":
    from astraea_local.tui.mock import MockWorld

    world = MockWorld()
    for _ in range(_MOCK_WARM_UP):
        world.step()
    return world


def _watch(
    url: str,
    api_key: str | None,
    record: Path | None,
    replay: Path | None,
    *,
    mock: bool,
    readonly: bool,
    interval: float,
) -> None:
    from astraea_local.tui.record import Recorder, RecordError, Recording

    if mock:
        from astraea_local.tui.mock import MockControl, MockSource

        world = _mock_world()
        source = MockSource(world)
        source.interval = interval
        run_ui(source, MockControl(world, readonly=readonly))
        return
    try:
        if replay is not None:
            from astraea_local.tui.actions import Refusing
            from astraea_local.tui.source import ReplaySource

            with Recording(replay) as recording:
                run_ui(ReplaySource(recording), Refusing())
            return
        recorder = None if record is None else Recorder(record)
    except RecordError as error:
        fail(str(error))
    with recorder or contextlib.nullcontext():
        watch_server(url, api_key, recorder, readonly=readonly, interval=interval)
    if recorder is not None:
        fault = f"; {recorder.fault}" if recorder.fault else ""
        err.print(f"{recorder.frames} frames in {record}{fault}", soft_wrap=True)


def watch_server(
    url: str,
    api_key: str | None,
    recorder: "Recorder | None" = None,
    *,
    readonly: bool = False,
    interval: float = INTERVAL_S,
    host: "Host | None" = None,
    certificate: Path | None = None,
) -> str | None:
    """Runs the UI on a server until it is left; what `AstraeaApp` returns.

    `host` and `certificate` are those of a server that was started with this UI.
    """
    from astraea_local.tui.actions import HttpControl
    from astraea_local.tui.source import HttpSource

    client = _client(url, api_key, certificate)
    on_raw = None if recorder is None else recorder.write
    source = HttpSource(url, client, interval=interval, on_raw=on_raw, starting=host is not None)
    return run_ui(source, HttpControl(client, readonly=readonly), host=host)


def run_ui(source: "Source", control: "Control", *, host: "Host | None" = None) -> str | None:
    """Runs the UI; what `AstraeaApp` returns. A wrong file of keys ends the command before."""
    # What is loaded here stays: looking through it for garbage would delay the first picture, and stop the
    # screen for a tenth of a second now and then.
    gc.disable()
    from astraea_local.tui import keys
    from astraea_local.tui.app import AstraeaApp, yield_to_others
    from astraea_local.tui.hangup import TerminalWatch

    file = keys.path()
    try:
        ui = AstraeaApp(source, control, keys=keys.load(file), keys_path=file, host=host)
    except keys.KeysError as error:
        fail(str(error))
    gc.freeze()
    gc.enable()
    yield_to_others()
    with TerminalWatch(ui.hang_up):
        answer = ui.run()
    if ui.return_code:
        raise typer.Exit(ui.return_code)
    return answer
