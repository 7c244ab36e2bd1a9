"""All keys, as they are in force."""

from rich.text import Text
from textual.app import ComposeResult

from astraea_local.tui.keys import KEYS, in_force, readable
from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.units import fitted
from astraea_local.tui.screens.base import FrameScreen
from astraea_local.tui.view import View

_WORDS = (
    "Agents are jobs: chains of calls to the model with tools in between. A queue is a level of the",
    "scheduler, a slot is a place in the batch. KV is a job's computed context: it is in its slot, parked",
    "in RAM or on disk, or nowhere. `~` is a predicted median, `≤` what nine of ten stay below.",
)
_COLUMN = 56


class Help(FrameScreen):
    """Keys by group, the names by which to change them, and a few words."""

    def body(self) -> ComposeResult:
        """One panel."""
        yield Lines(id="help", title="help")

    def on_mount(self) -> None:
        """It can be scrolled."""
        super().on_mount()
        self.query_one("#help").focus()

    def show(self, view: View) -> None:
        """Needs no frame."""
        super().show(view)
        panel = self.query_one("#help", Lines)
        panel.show(_lines(self.ui.keys, str(self.ui.keys_path), view.palette, panel.room[0]))


def _lines(changed: dict[str, str], path: str, palette: Palette, width: int) -> list[Text]:
    keys = in_force(changed)
    groups = dict.fromkeys(key.group for key in KEYS.values())
    blocks = []
    for group in groups:
        block = [Text(group.upper(), style=palette.title, end="")]
        for name, key in KEYS.items():
            if key.group == group:
                text = Text(fitted(readable(keys[name]), 12), style=palette.accent, end="")
                text.append(fitted(key.text, 29) + " ", palette.text).append(name, palette.dim)
                block.append(text)
        blocks.append([*block, Text("", end="")])
    lines = _in_columns(blocks, max(1, width // _COLUMN))
    lines += [Text(words, style=palette.dim, end="") for words in _WORDS]
    lines.append(
        Text(f'keys are changed in {path}, as in: [keys] park = "ctrl+k"', style=palette.dim, end="")
    )
    return lines


def _in_columns(blocks: list[list[Text]], columns: int) -> list[Text]:
    """Blocks one after another into the column that is shortest."""
    stacks: list[list[Text]] = [[] for _ in range(columns)]
    for block in blocks:
        min(stacks, key=len).extend(block)
    lines = []
    for row in range(max(map(len, stacks))):
        text = Text(no_wrap=True, end="")
        for stack in stacks:
            cell = stack[row].copy() if row < len(stack) else Text("")
            cell.truncate(_COLUMN - 1, pad=True)
            text.append_text(cell).append(" ")
        lines.append(text)
    return lines
