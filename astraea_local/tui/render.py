"""Renders parts of a StateFrame; no Textual here, so that plain output and panels can share it."""

from typing import Literal

from rich.table import Table
from rich.text import Text

from astraea_local.frame import JobRow, StateFrame

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
        table.add_row(*(Text(cell) for cell in cells))
    return table


def kv_place(job: JobRow) -> str:
    """Where a job's KV is, and how many tokens of it."""
    return "-" if job.kv == "none" else f"{job.kv} {job.kv_tokens}"


def seconds(value: float) -> str:
    """A duration in at most five characters: `0.4s`, `12s`, `3m05`, `2h10`, `4d07`."""
    if value < 10:
        return f"{value:.1f}s"
    if value < 60:
        return f"{value:.0f}s"
    if value < 3600:
        return f"{int(value) // 60}m{int(value) % 60:02d}"
    if value < 100 * 3600:
        return f"{int(value) // 3600}h{int(value) % 3600 // 60:02d}"
    days, hours = divmod(int(value) // 3600, 24)
    return f"{days}d{hours:02d}" if days < 100 else f"{days}d"
