"""Lines made of parts, of which none is ever cut in the middle."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

Part = tuple[str, str]
"""Words and their style."""

_GAP = "  "


def joined(parts: Sequence[Part], width: int, label: str = "") -> Text:
    """The label and as many parts as fit whole, the first in any case."""
    text = Text(label, no_wrap=True, end="", overflow="ellipsis")
    for index, (words, style) in enumerate(parts):
        gap = _GAP if index else ""
        if index and text.cell_len + cell_len(gap + words) > width:
            break
        text.append(gap).append(words, style or None)
    text.truncate(width, overflow="ellipsis")
    return text


def wrapped(parts: Sequence[Part], width: int) -> list[Text]:
    """All parts, in as many lines as they need."""
    lines: list[list[Part]] = []
    left = 0
    for part in parts:
        if not lines or left < cell_len(_GAP + part[0]):
            lines.append([])
            left = width + len(_GAP)
        lines[-1].append(part)
        left -= cell_len(_GAP + part[0])
    return [joined(line, width) for line in lines]
