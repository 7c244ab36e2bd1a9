"""The command line: serving, watching, measuring, profiles."""

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from astraea_local import __version__, calibration
from astraea_local import profile as profiles
from astraea_local.bench.commands import bench_app
from astraea_local.frame import StateFrame
from astraea_local.model_source import ModelSourceError, resolve
from astraea_local.profile import Profile, ProfileError
from astraea_local.tui.render import job_table

app = typer.Typer(
    name="astraea-local",
    help="Hosts one GGUF model for many local agents at once.",
    epilog="Example: astraea-local serve --model qwen3-8b-q4_k_m.gguf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
profiles_app = typer.Typer(
    help="Lists, shows and checks profiles.",
    epilog="Example: astraea-local profiles list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
predictor_app = typer.Typer(
    help="How well output lengths and tool waits are predicted.",
    epilog="Example: astraea-local predictor report",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(profiles_app, name="profiles")
app.add_typer(predictor_app, name="predictor")
app.add_typer(bench_app, name="bench")

DEFAULT_PROFILE = "smollm2-cpu"
DEFAULT_URL = "http://127.0.0.1:8080"

# Names come from files and clients: what looks like markup in them is none.
_out = Console(markup=False, emoji=False)
_TELL_S = 2.0

_err = Console(stderr=True, markup=False, emoji=False, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ProfileName = Annotated[str, typer.Option("--profile", help="A shipped profile's name, or a .toml file.")]


def main() -> None:
    """Entry point of the `astraea-local` command."""
    app()


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


@app.command(epilog="Example: astraea-local serve --model qwen3-8b-q4_k_m.gguf --ctx 32768")
def serve(
    profile: ProfileName = DEFAULT_PROFILE,
    model: Annotated[str | None, typer.Option(help="A GGUF file.")] = None,
    hf: Annotated[str | None, typer.Option(help="OWNER/REPO[:QUANT] on the Hugging Face hub.")] = None,
    host: Annotated[str | None, typer.Option(help="Loopback address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    ctx: Annotated[int | None, typer.Option(help="KV cells in total.")] = None,
    slots: Annotated[int | None, typer.Option(help="Segments running at the same time.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU; -1 = all.")] = None,
    kv_layout: Annotated[str | None, typer.Option(help="auto, per_slot or unified.")] = None,
    policy: Annotated[str | None, typer.Option(help="Who runs next; see `policy`.")] = None,
    no_tui: Annotated[bool, typer.Option("--no-tui", help="Plain log lines instead of the UI.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, llama.cpp included.")] = False,
) -> None:
    """Hosts a model until Ctrl-C.

    Options win over the profile. Without any, the embedded demo model is served.
    """
    del no_tui
    if model is not None and hf is not None:
        _fail("--model and --hf exclude each other")
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
    }
    settings, path = _settle(profile, changes)
    _run(settings, path, verbose=verbose)


@app.command(epilog="Example: astraea-local ps --json | jq '.jobs[].state'")
def ps(
    url: Annotated[str, typer.Argument(help="The server.")] = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Shows the jobs of a running server."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/astraea/v1/state", timeout=5)
        answer.raise_for_status()
        frame = StateFrame.model_validate_json(answer.content)
    except httpx.HTTPStatusError as error:
        _fail(f"{url}: {_message_of(error.response)}", code=1)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"no server answers at {url} ({error}): start one with `astraea-local serve`", code=1)
    except ValueError:
        _fail(f"{url} is not an astraea-local server of this version", code=1)
    if as_json:
        typer.echo(frame.model_dump_json(indent=2))
    else:
        _out.print(job_table(frame))


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
            httpx.post(where, json={"policy": name}, timeout=5).raise_for_status()
        answer = httpx.get(where, timeout=5).raise_for_status().json()
    except httpx.HTTPStatusError as error:
        _fail(_message_of(error.response))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"no server answers at {url} ({error}): start one with `astraea-local serve`", code=1)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    table = Table("", "POLICY", "WHAT IT DOES", box=None)
    for known in answer["policies"]:
        mark = "*" if known["name"] == answer["policy"] else ""
        table.add_row(mark, known["name"], known["summary"])
    _out.print(table)


@app.command(epilog="Example: astraea-local calibrate --model qwen3-8b-q4_k_m.gguf --ctx 32768")
def calibrate(
    profile: ProfileName = DEFAULT_PROFILE,
    model: Annotated[str | None, typer.Option(help="A GGUF file.")] = None,
    ctx: Annotated[int | None, typer.Option(help="KV cells in total.")] = None,
    slots: Annotated[int | None, typer.Option(help="Segments running at the same time.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    kv_layout: Annotated[str | None, typer.Option(help="auto, per_slot or unified.")] = None,
    gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU; -1 = all.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time to measure.")] = calibration.BUDGET_S,
    as_json: AsJson = False,
) -> None:
    """Measures a model on this machine; `serve` with the same settings then plans by it."""
    from astraea_local.engine.calibrate import CalibrationError, run
    from astraea_local.engine.worker import EngineSpec

    changes = {
        "model.source": model,
        "model.threads": threads,
        "model.gpu_layers": gpu_layers,
        "context.size": ctx,
        "context.slots": slots,
        "kv.layout": kv_layout,
    }
    settings, path = _settle(profile, changes)
    try:
        with _progress("calibrating") as progress:
            bar = progress.add_task(path.name, total=1.0)
            found = run(
                EngineSpec(settings, path),
                lambda share, what: progress.update(bar, completed=share, description=what),
                budget_s=seconds,
            )
        stored = calibration.save(found)
    except CalibrationError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"the calibration cannot be stored: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table = Table(box=None, show_header=False)
    for what, figure in calibration.summary(found):
        table.add_row(what, figure)
    _out.print(table)
    _out.print(f"stored in {stored}", soft_wrap=True)


@predictor_app.command("report", epilog="Example: astraea-local predictor report --json")
def predictor_report(
    model: Annotated[str | None, typer.Option(help="Only this model's segments.")] = None,
    path: Annotated[Path | None, typer.Option("--history", help="Another history file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compares the learned with the empirical predictions on the last fifth of the recorded segments."""
    from astraea_local import history
    from astraea_local.learning.report import as_dict, render, report

    try:
        found = report(path or history.default_path(), model)
    except history.HistoryError as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2))
    else:
        _out.print(render(found))


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
    _out.print(table)


@profiles_app.command("show", epilog="Example: astraea-local profiles show gpu-24g")
def profiles_show(name: Annotated[str, typer.Argument()] = DEFAULT_PROFILE, as_json: AsJson = False) -> None:
    """Shows every setting of a profile, with what it means."""
    profile = _load(name)
    if as_json:
        typer.echo(profile.model_dump_json(indent=2))
        return
    table = Table("FIELD", "VALUE", "MEANING", box=None)
    for field, value, text in profiles.fields(profile):
        table.add_row(field, json.dumps(value), " ".join(text.split()))
    _out.print(table)


@profiles_app.command("check", epilog="Example: astraea-local profiles check mine.toml")
def profiles_check(file: Annotated[str, typer.Argument(help="A .toml file.")]) -> None:
    """Says whether a profile is valid; exit code 2 when it is not."""
    profile = _load(file)
    typer.echo(f"{file}: valid ({profile.name})")


@app.command(epilog="Example: astraea-local doctor --profile gpu-24g")
def doctor(profile: ProfileName = DEFAULT_PROFILE, as_json: AsJson = False) -> None:
    """Prints what was found on this machine, what fits, and what to change; exit code 1 on an error."""
    from astraea_local import doctor as examination

    report = examination.examine(_load(profile))
    typer.echo(report.model_dump_json(indent=2) if as_json else examination.render(report))
    if report.worst == "error":
        raise typer.Exit(1)


def _run(profile: Profile, path: Path, *, verbose: bool) -> None:
    from astraea_local.api import server
    from astraea_local.doctor import idle_gpu
    from astraea_local.engine.binding import BindingError
    from astraea_local.engine.supervisor import EngineStartError

    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not verbose:
        # Here it only reads the vocabulary and grammars; what it refuses is reported as our own error.
        logging.getLogger("llama.cpp").setLevel(logging.CRITICAL)
    for chatty in ("asyncio", "httpx", "httpcore", "sse_starlette"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    def ready(facts: Any, url: str) -> None:
        progress.stop()
        _err.print(
            f"{facts.model} ({facts.model_class}) on {url}/v1: {facts.slots} slots, {facts.context} cells "
            f"{facts.layout}, {facts.job_context} tokens for a job, GPU: {facts.offloaded}, "
            f"policy {profile.scheduler.policy}",
            soft_wrap=True,
        )
        if not facts.calibrated:
            _err.print(
                "not calibrated: planning by a brief measurement; see `astraea-local calibrate --help`"
            )
        if (line := idle_gpu()) is not None:
            _err.print(f"warning: {line}", soft_wrap=True)

    told_at = time.monotonic()

    def loading(share: float) -> None:
        nonlocal told_at
        progress.update(bar, completed=share)
        # Without a terminal there is no bar: a line now and then, when it takes long enough to wonder.
        if not _err.is_terminal and time.monotonic() - told_at > _TELL_S:
            told_at = time.monotonic()
            _err.print(f"loading {path.name}: {share:.0%}")

    try:
        sock = server.listen(profile.server)
        with _progress("loading model") as progress:
            bar = progress.add_task(path.name, total=1.0)
            asyncio.run(
                server.serve(
                    profile,
                    path,
                    sock,
                    on_progress=loading,
                    on_ready=ready,
                    log_level=level,
                )
            )
    except (server.ServeError, BindingError, EngineStartError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    _err.print("stopped")


def _settle(profile: str, changes: dict[str, Any]) -> tuple[Profile, Path]:
    """The profile with what was given on the command line (not None), and its model's file."""
    try:
        settings = profiles.override(
            profiles.load(profile), {k: v for k, v in changes.items() if v is not None}
        )
        return settings, _fetch(settings.model.source)
    except (ProfileError, ModelSourceError) as error:
        _fail(str(error))


def _fetch(source: str) -> Path:
    """The model file; a download shows its progress."""
    with _progress("downloading") as progress:
        bars: list[Any] = []

        def report(done: int, total: int | None) -> None:
            if not bars:
                bars.append(progress.add_task(source, total=total))
            progress.update(bars[0], completed=done, total=total)

        return resolve(source, on_progress=report)


def _progress(what: str) -> Progress:
    columns = [TextColumn(what), TextColumn("{task.description}", markup=False), BarColumn()]
    if what == "downloading":
        columns += [DownloadColumn(), TimeRemainingColumn()]
    else:
        columns.append(TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal)


def _load(name: str) -> Profile:
    try:
        return profiles.load(name)
    except ProfileError as error:
        _fail(str(error))


def _message_of(response: Any) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"astraea-local: {message}", file=sys.stderr)
    raise typer.Exit(code)
