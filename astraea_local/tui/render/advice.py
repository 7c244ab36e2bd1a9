"""The advisor's findings as lines."""

import textwrap
from collections.abc import Sequence

from rich.text import Text

from astraea_local.tui.advisor import Advice
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.units import clean

_MARKS = {"error": "✗", "warning": "▲", "info": "·"}
_LEAST_WIDTH = 20


def advice_lines(found: Sequence[Advice], palette: Palette, width: int) -> list[Text]:
    """All of them, wrapped to the width; each names the field to change first."""
    lines = []
    for advice in found:
        head = f"{advice.field}: " if advice.field else ""
        wrapped = textwrap.wrap(head + clean(advice.text), max(_LEAST_WIDTH, width - 2)) or [""]
        for index, piece in enumerate(wrapped):
            mark = "  " if index else f"{_MARKS[advice.severity]} "
            text = Text(mark, style=palette.of_level(advice.severity), no_wrap=True, end="")
            named = advice.field if not index and piece.startswith(advice.field) else ""
            text.append(named, f"{palette.accent} bold").append(piece[len(named) :], palette.text or None)
            lines.append(text)
    return lines
