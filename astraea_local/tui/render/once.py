"""A whole frame as plain lines, for `top --once`."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from astraea_local.frame import StateFrame
from astraea_local.tui.advisor import advise
from astraea_local.tui.render.advice import advice_lines
from astraea_local.tui.render.header import header, summary
from astraea_local.tui.render.memory import memory
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.rows import AGENTS, EVENTS, QUEUED, SLOTS
from astraea_local.tui.render.table import Column, Row, fit, line
from astraea_local.tui.render.table import header as table_header

_EVENTS = 10


def once(frame: StateFrame, palette: Palette, width: int) -> Iterator[Text]:
    """The lines of everything that the overview shows."""
    yield from header(frame, "", palette, width)
    yield summary(frame, palette, width)
    yield Text("")
    yield from memory(frame, palette, width)
    yield from _table("SLOTS", SLOTS, frame.slots, palette, width)
    yield from _table("QUEUES", QUEUED, frame.queue, palette, width)
    yield from _table("AGENTS", AGENTS, frame.jobs, palette, width)
    yield from _table("EVENTS", EVENTS, frame.events[-_EVENTS:], palette, width)
    if found := advise(frame):
        yield Text("")
        yield from advice_lines(found, palette, width)


def _table(
    title: str, columns: Sequence[Column[Row]], rows: Sequence[Row], palette: Palette, width: int
) -> Iterator[Text]:
    yield Text("")
    yield Text(f"{title} ({len(rows)})", style=palette.title)
    if not rows:
        return
    fitted = fit(columns, width)
    yield table_header(fitted, palette)
    for row in rows:
        yield line(fitted, row, palette)
