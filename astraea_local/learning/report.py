"""What the predictors are worth on this machine's own history, for people and for programs."""

from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from astraea_local.learning import LearnedUnavailable, available
from astraea_local.learning.dataset import build, read
from astraea_local.learning.evaluate import CALIBRATED, MIN_ROWS, Report, Score, evaluate

_NAMES = {"output": "output length", "wait": "tool wait"}


def report(history: Path, model: str | None) -> Report:
    """Trains on the recorded segments of `model`, or of all, and compares; without torch, half of it.

    Takes some seconds. Raises `HistoryError` for a file that cannot be used; no file is no records.
    """
    records = read(history, model)
    if available():
        # Not at the top: the empirical half has to work without torch.
        from astraea_local.learning.train import learn

        return learn(records, model).report
    return evaluate(records, build(records), model, None)


def render(found: Report) -> Table:
    """The report as a table."""
    title = f"Predictors on the last fifth of the history of {found.model or 'all models'}"
    # Escaped: the name of the extra and that of a model may look like markup.
    table = Table(title=escape(title), caption=escape(_caption(found)))
    table.add_column("target")
    table.add_column("recorded", justify="right")
    table.add_column("predictor")
    table.add_column("loss", justify="right")
    table.add_column("at or below 10 / 50 / 90 %", justify="right")
    table.add_column("used")
    for target in found.targets:
        name, rows = _NAMES[target.target], f"{target.rows:,}"
        table.add_row(name, rows, "empirical", *_cells(target.empirical), "" if target.wins else "yes")
        table.add_row("", "", "learned", *_cells(target.learned), "yes" if target.wins else "")
    return table


def as_dict(found: Report) -> dict[str, object]:
    """The report with nothing but JSON's own types."""
    return {
        "model": found.model,
        "calibrated": CALIBRATED,
        **{target.target: asdict(target) for target in found.targets},
    }


def _cells(score: Score | None) -> tuple[str, str]:
    if score is None:
        return "-", "-"
    return f"{score.loss:.4f}", " / ".join(f"{100 * share:.0f}" for share in score.below)


def _caption(found: Report) -> str:
    notes = []
    if not available():
        notes.append(str(LearnedUnavailable()))
    if any(target.rows < MIN_ROWS for target in found.targets):
        notes.append(f"with fewer than {MIN_ROWS} recorded nothing is compared")
    return "; ".join(notes)
