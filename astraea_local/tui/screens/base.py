"""What the screens that show frames have in common."""

from typing import TYPE_CHECKING, ClassVar, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import Footer, Static

from astraea_local.tui.keys import binding
from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.panels.table import Table
from astraea_local.tui.render.header import header, summary, waiting
from astraea_local.tui.view import View

if TYPE_CHECKING:
    from astraea_local.tui.app import AstraeaApp

LEAST = (60, 16)
"""Columns and lines below which nothing useful fits."""
_MEDIUM = (100, 30)
_LARGE = (160, 45)


class FrameScreen(Screen[None]):
    """A screen that draws a `View`: header at the top, keys at the bottom."""

    BINDINGS: ClassVar[list[BindingType]] = [binding("back")]

    def __init__(self) -> None:
        super().__init__()
        self.size_class = ""

    @property
    def ui(self) -> "AstraeaApp":
        """The app."""
        return cast("AstraeaApp", self.app)

    @property
    def job(self) -> str | None:
        """The job that actions are about."""
        return None

    def compose(self) -> ComposeResult:
        """The frame around `body`."""
        yield Static(id="too-small")
        yield Lines(id="header")
        yield from self.body()
        yield Footer(show_command_palette=False, compact=True)

    def body(self) -> ComposeResult:
        """The panels."""
        yield from ()

    def show(self, view: View) -> None:
        """Draws everything; called for each frame."""
        lines = self.query_one("#header", Lines)
        width = max(1, self.size.width - 2)
        if view.frame is None:
            for table in self.query(Table):
                table.show_rows((), view.palette)
            lines.show(waiting(view.status, view.palette, width))
            return
        parts = header(view.frame, view.status, view.palette, width, stale=view.stale)
        lines.show([*parts, summary(view.frame, view.palette, width)])
        self.draw(view)

    def draw(self, view: View) -> None:
        """Draws the panels from a view that has a frame."""

    def on_mount(self) -> None:
        """Shows what there is at once."""
        self.query_one("#header", Lines).can_focus = False
        self.call_after_refresh(self.redraw)

    def on_lines_narrowed(self) -> None:
        """Makes the lines anew when a scrollbar took a column, or gave it back."""
        self.call_after_refresh(self.redraw)

    def on_screen_resume(self) -> None:
        """Catches up with what came while another screen was on top."""
        self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        """Draws again, as after a change of size or order."""
        # Not when it was left before its turn came: its panels are gone then.
        if self.is_mounted and self in self.app.screen_stack:
            self.show(self.ui.view)

    def on_resize(self, event: events.Resize) -> None:
        """Chooses the layout by the size."""
        columns, rows = event.size
        too_small = columns < LEAST[0] or rows < LEAST[1]
        self.set_class(too_small, "-too-small")
        if too_small:
            text = f"{columns}×{rows} is too small: make the terminal {LEAST[0]}×{LEAST[1]} or larger"
            self.query_one("#too-small", Static).update(text)
        self.size_class = _size_class(columns, rows)
        for name in ("-small", "-medium", "-large"):
            self.set_class(name == self.size_class, name)
        self.place_panels()
        self.call_after_refresh(self.redraw)

    def place_panels(self) -> None:
        """Shows and hides panels for `size_class`."""

    def action_back(self) -> None:
        """Returns to the screen below."""
        if self.maximized is not None:
            self.minimize()
        else:
            self.app.pop_screen()


def _size_class(columns: int, rows: int) -> str:
    for name, (least_columns, least_rows) in (("-large", _LARGE), ("-medium", _MEDIUM)):
        if columns >= least_columns and rows >= least_rows:
            return name
    return "-small"
