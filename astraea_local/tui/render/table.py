"""Tables of which only the visible lines are made: columns that come and go with the width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.text import Text

from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.units import clean, fitted

Row = TypeVar("Row")
Cell = tuple[str, str]
"""A text and its style."""

_GAP = 1


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column."""

    title: str
    width: int
    """Cells; the least ones where it grows."""
    cell: Callable[[Row, Palette], Cell]
    right: bool = False
    grow: int = 0
    """Share of the width that is left over."""
    rank: int = 0
    """Where there is no room, the column of the highest rank goes first; 0 always stays."""
    most: int = 1000
    """Cells that are enough for it."""
    sort: str = ""
    """The row's attribute to sort by; empty where it makes no sense."""


Fitted = tuple[tuple[Column[Row], int], ...]


def width_of(columns: Fitted[Row]) -> int:
    """Cells of a line."""
    return sum(width + _GAP for _, width in columns) - _GAP


def fit(columns: Sequence[Column[Row]], width: int) -> Fitted[Row]:
    """Those that there is room for, with their widths."""
    chosen = list(columns)
    while _total(chosen) > width and any(column.rank for column in chosen):
        chosen.remove(max(chosen, key=lambda column: column.rank))
    spare = max(0, width - _total(chosen))
    shares = sum(column.grow for column in chosen)
    made = []
    for column in chosen:
        extra = min(spare * column.grow // shares if shares else 0, column.most - column.width)
        spare -= extra
        shares -= column.grow
        made.append((column, column.width + extra))
    return tuple(made)


def sort_mark(columns: Sequence[Column[Row]], sort: str, *, ascending: bool) -> str:
    """How a table is sorted, for its title: `▼tokens`."""
    title = next((column.title for column in columns if column.sort == sort), sort)
    return ("▲" if ascending else "▼") + title.partition(" ")[0].lower()


def header(columns: Fitted[Row], palette: Palette) -> Text:
    """The line of titles."""
    titles = (fitted(column.title, width, right=column.right) for column, width in columns)
    return Text((" " * _GAP).join(titles), style=palette.dim, no_wrap=True, end="")


def pieces(columns: Fitted[Row], row: Row, palette: Palette) -> tuple[Cell, ...]:
    """One row in pieces of one style each, as wide as its columns; what clients wrote in it is harmless.

    Gaps have the style of the column before them: they show nothing, and every piece costs time.
    """
    made: list[Cell] = []
    so_far, style = "", ""
    for column, width in columns:
        content, own = column.cell(row, palette)
        if so_far:
            so_far += " " * _GAP
        if own != style:
            if so_far:
                made.append((so_far, style))
            so_far, style = "", own
        so_far += fitted(clean(content), width, right=column.right)
    return *made, (so_far, style)


def line(columns: Fitted[Row], row: Row, palette: Palette) -> Text:
    """One row as text."""
    text = Text(no_wrap=True, end="")
    for piece, style in pieces(columns, row, palette):
        text.append(piece, style or None)
    return text


def _total(columns: Sequence[Column[Row]]) -> int:
    return sum(column.width + _GAP for column in columns) - _GAP
