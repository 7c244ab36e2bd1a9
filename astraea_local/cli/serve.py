"""`astraea-local serve`."""

import asyncio
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astraea_local.cli.app import app
from astraea_local.cli.hosted import end_with_parent, has_terminal, serve_with_ui
from astraea_local.cli.shared import DEFAULT_PROFILE, ProfileName, err, fail, progress_bar, settle
from astraea_local.profile import Profile

if TYPE_CHECKING:
    from astraea_local.api.auth import ApiKeys

_TELL_S = 2.0


@app.command(epilog="Example: astraea-local serve --model qwen3-8b-q4_k_m.gguf --ctx 32768")
def serve(
    profile: ProfileName = DEFAULT_PROFILE,
    model: Annotated[str | None, typer.Option(help="A GGUF file.")] = None,
    hf: Annotated[str | None, typer.Option(help="OWNER/REPO[:QUANT] on the Hugging Face hub.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; not loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    ctx: Annotated[int | None, typer.Option(help="KV cells in total.")] = None,
    slots: Annotated[int | None, typer.Option(help="Segments running at the same time.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU; -1 = all.")] = None,
    kv_layout: Annotated[str | None, typer.Option(help="auto, per_slot or unified.")] = None,
    policy: Annotated[str | None, typer.Option(help="Who runs next; see `policy`.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="KEY or NAME:KEY, repeatable; others see it in `ps`.")
    ] = None,
    api_key_file: Annotated[str | None, typer.Option(help="File of `name: key` lines.")] = None,
    tls_cert: Annotated[str | None, typer.Option(help="PEM certificate chain, for https.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM private key of the certificate.")] = None,
    no_tui: Annotated[bool, typer.Option("--no-tui", help="Plain log lines instead of the UI.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, llama.cpp included.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Hosts a model until Ctrl-C; on a terminal with the UI of `top`.

    Options win over the profile. Without any, the embedded demo model is served. API keys may also stand in
    ASTRAEA_API_KEY.
    """
    if model is not None and hf is not None:
        fail("--model and --hf exclude each other")
    changes = {
        "model.source": f"hf:{hf}" if hf is not None else model,
        "model.threads": threads,
        "model.gpu_layers": gpu_layers,
        "context.size": ctx,
        "context.slots": slots,
        "kv.layout": kv_layout,
        "scheduler.policy": policy,
        "server.host": host,
        "server.port": port,
        "server.api_key_file": api_key_file,
        "server.tls_cert": tls_cert,
        "server.tls_key": tls_key,
    }
    settings, path = settle(profile, changes)
    sources = (api_key or [], settings.server.api_key_file, os.environ.get("ASTRAEA_API_KEY", ""))
    keys = _keys(*sources)
    if not no_tui and has_terminal():
        serve_with_ui(settings, sys.argv[1:], _own_key(*sources))
        return
    # Taken out of the environment, so that no child inherits it.
    os.environ.pop("ASTRAEA_API_KEY", None)
    if with_parent:
        end_with_parent()
    run_server(settings, path, keys, verbose=verbose)


def _own_key(options: list[str], file: str, environment: str) -> str | None:
    """The first of the server's keys, for its own UI."""
    from astraea_local.api import auth

    return next((key for _name, key in auth.entries_of(options, file, environment)), None)


def _keys(options: list[str], file: str, environment: str) -> "ApiKeys":
    from astraea_local.api import auth

    try:
        keys = auth.gather(options, file, environment)
        if file and auth.readable_by_others(file):
            err.print(f"warning: {file} can be read by other users: chmod 600 it", soft_wrap=True)
    except auth.KeyFault as error:
        fail(str(error))
    if keys.short:
        err.print("warning: an API key has fewer than 16 characters and can be guessed", soft_wrap=True)
    return keys


def run_server(profile: Profile, path: Path, keys: "ApiKeys", *, verbose: bool) -> None:
    from astraea_local.api import server
    from astraea_local.doctor import idle_gpu
    from astraea_local.engine.binding import BindingError
    from astraea_local.engine.supervisor import EngineStartError

    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Here it only reads the vocabulary and grammars; what it refuses is reported as our own error. It would
    # also print the grammar, which is a client's text.
    logging.getLogger("llama.cpp").setLevel(logging.CRITICAL)
    for chatty in ("asyncio", "httpx", "httpcore", "sse_starlette"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # One line for each malformed request would let anybody fill the disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    def ready(facts: Any, url: str) -> None:
        progress.stop()
        err.print(
            f"{facts.model} ({facts.model_class}) on {url}/v1: {facts.slots} slots, {facts.context} cells "
            f"{facts.layout}, {facts.job_context} tokens for a job, GPU: {facts.offloaded}, "
            f"policy {profile.scheduler.policy}",
            soft_wrap=True,
        )
        if not facts.calibrated:
            err.print(
                "not calibrated: planning by a brief measurement; see `astraea-local calibrate --help`",
                soft_wrap=True,
            )
        if (line := idle_gpu()) is not None:
            err.print(f"warning: {line}", soft_wrap=True)

    told_at = time.monotonic()

    def loading(share: float) -> None:
        nonlocal told_at
        progress.update(bar, completed=share)
        # Without a terminal there is no bar: a line now and then, when it takes long enough to wonder.
        if not err.is_terminal and time.monotonic() - told_at > _TELL_S:
            told_at = time.monotonic()
            err.print(f"loading {path.name}: {share:.0%}")

    try:
        sock = server.listen(profile.server, keys)
        with progress_bar("loading model") as progress:
            bar = progress.add_task(path.name, total=1.0)
            asyncio.run(
                server.serve(
                    profile,
                    path,
                    sock,
                    keys=keys,
                    on_progress=loading,
                    on_ready=ready,
                    log_level=level,
                )
            )
    except (server.ServeError, BindingError, EngineStartError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    err.print("stopped")
