"""The table of `ps`."""

from typing import Literal

from rich.table import Table
from rich.text import Text

from astraea_local.frame import JobRow, StateFrame
from astraea_local.tui.render.units import clean, seconds

# Columns whose text a client chooses.
_WIDEST = {"AGENT": 20}


def job_table(frame: StateFrame) -> Table:
    """One line for each job: agent, state, queue, tokens, where its KV is, wait, and why."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    for name in ("AGENT", "STATE", "QUEUE", "TOKENS", "KV", "CALLS", "WAITED", "SINCE"):
        justify: Literal["left", "right"] = "right" if name in ("TOKENS", "CALLS") else "left"
        table.add_column(name, no_wrap=True, justify=justify, max_width=_WIDEST.get(name))
    # The reason takes what is left of the line; without a ratio it would squeeze the others to nothing.
    table.add_column("REASON", overflow="ellipsis", no_wrap=True, ratio=1)
    for job in frame.jobs:
        cells = (
            job.job,
            job.state,
            f"Q{job.queue}",
            str(job.tokens),
            kv_place(job),
            str(job.segments),
            seconds(job.waited_s),
            seconds(job.since_s),
            job.reason,
        )
        # Not as strings: Rich would take brackets in a name for markup.
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table


def kv_place(job: JobRow) -> str:
    """Where a job's KV is, and how many tokens of it."""
    return "-" if job.kv == "none" else f"{job.kv} {job.kv_tokens}"
