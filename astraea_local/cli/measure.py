"""`astraea-local calibrate` and `predictor report`: what the scheduler's predictions rest on."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from astraea_local import calibration
from astraea_local.cli.app import app
from astraea_local.cli.shared import DEFAULT_PROFILE, AsJson, ProfileName, fail, out, progress_bar, settle

predictor_app = typer.Typer(
    help="How well output lengths and tool waits are predicted.",
    epilog="Example: astraea-local predictor report",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(predictor_app, name="predictor")


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
    settings, path = settle(profile, changes)
    try:
        with progress_bar("calibrating") as progress:
            bar = progress.add_task(path.name, total=1.0)
            found = run(
                EngineSpec(settings, path),
                lambda share, what: progress.update(bar, completed=share, description=what),
                budget_s=seconds,
            )
        stored = calibration.save(found)
    except CalibrationError as error:
        fail(str(error))
    except OSError as error:
        fail(f"the calibration cannot be stored: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table = Table(box=None, show_header=False)
    for what, figure in calibration.summary(found):
        table.add_row(what, figure)
    out.print(table)
    out.print(f"stored in {stored}", soft_wrap=True)


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
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2))
    else:
        out.print(render(found))
