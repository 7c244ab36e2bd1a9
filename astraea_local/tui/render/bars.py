"""Bars, sparklines and graphs in block characters."""

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from astraea_local.tui.render.palette import Palette

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"


def bar(
    parts: Sequence[tuple[float, str]], width: int, palette: Palette, marks: Sequence[float] = ()
) -> Text:
    """A bar of several parts, each a share of the whole and its style; `marks` are shares to point out.

    A part that is not nothing gets a cell of its own where there is room.
    """
    text = Text(no_wrap=True, end="")
    edges = _edges([share for share, _ in parts], width)
    marked = {min(width - 1, int(mark * width)) for mark in marks if 0 < mark < 1}
    cells: list[tuple[str, str]] = []
    for cell in range(width):
        style = next((s for (_, s), end in zip(parts, edges, strict=True) if cell < end), None)
        if cell in marked:
            cells.append(("│", palette.warn if style is None else f"{palette.text} reverse".strip()))
        elif style is None:
            cells.append(("░", palette.track))
        else:
            cells.append(("█", style))
    for (character, style), run in groupby(cells):
        text.append(character * len(list(run)), style)
    return text


def _edges(shares: Sequence[float], width: int) -> list[int]:
    edges: list[int] = []
    total, last = 0.0, 0
    for share in shares:
        total += max(0.0, share)
        end = min(width, max(round(total * width), last + (1 if share > 0 else 0)))
        edges.append(end)
        last = end
    return edges


def meter(share: float, width: int, style: str, palette: Palette) -> Text:
    """A bar of one part, exact to an eighth of a cell."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    text = Text("█" * full, style=style, no_wrap=True, end="")
    if rest:
        text.append(_EIGHTHS[rest], style)
    return text.append("░" * (width - full - (rest > 0)), palette.track)


def sparkline(values: Sequence[float], width: int, *, top: float | None = None) -> str:
    """One line, the newest value at its right end; a value that is not nothing is never invisible."""
    return graph(values, width, 1, top=top)[0]


def graph(values: Sequence[float], width: int, height: int, *, top: float | None = None) -> list[str]:
    """`height` lines from the top down, the newest value at the right end."""
    newest = list(values)[-width:] if width > 0 else []
    highest = max([top or 0.0, *newest], default=0.0)
    steps = [_steps(value, highest, 8 * height) for value in newest]
    lines = []
    for level in reversed(range(height)):
        cells = (_LEVELS[min(8, max(0, step - 8 * level))] for step in steps)
        lines.append("".join(cells).rjust(width))
    return lines


def _steps(value: float, highest: float, steps: int) -> int:
    if highest <= 0 or value <= 0:
        return 0
    return max(1, round(steps * min(1.0, value / highest)))
