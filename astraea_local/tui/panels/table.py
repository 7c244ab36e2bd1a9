"""A panel of rows with columns that come and go with its width."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.render.palette import PLAIN, Palette
from astraea_local.tui.render.table import Cell, Column, Fitted, Row, fit, header, pieces, width_of


class Table(Lines, Generic[Row]):
    """A panel of rows with a cursor, which stays with its row when the order changes."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "end(-1)", "First", show=False),
        Binding("end", "end(1)", "Last", show=False),
    ]

    class Chosen(Message):
        """A row was double-clicked."""

    class Headed(Message):
        """A column's title was clicked."""

        def __init__(self, table: "Table[Any]", column: "Column[Any]") -> None:
            super().__init__()
            self.table = table
            self.column = column

    def __init__(
        self,
        columns: Sequence[Column[Row]],
        *,
        id: str,  # noqa: A002
        title: str = "",
        key: Callable[[Row], object] = id,
        follow: bool = False,
    ) -> None:
        """`key` tells rows apart from frame to frame; `follow` keeps the end in sight, as a log does."""
        super().__init__(id=id, title=title)
        self.rows: Sequence[Row] = ()
        self._columns = columns
        self._key = key
        self._follow = follow
        self._cursor = 0
        self._at: object = None
        self._fitted: tuple[int, Fitted[Row]] | None = None
        self._palette = PLAIN
        self._made: dict[int, tuple[Cell, ...]] = {}

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self._cursor] if self._cursor < len(self.rows) else None

    def show_rows(self, rows: Sequence[Row], palette: Palette) -> None:
        """Puts them in place of the former ones; the cursor goes where its row went."""
        at_end = self._follow and self._cursor >= len(self.rows) - 1
        self.rows = rows
        self._palette = palette
        self._made.clear()
        if at_end:
            self._cursor = max(0, len(rows) - 1)
        elif self._at is not None:
            self._cursor = self._place_of(self._at)
        self._resize_to(len(rows) + 1)
        if at_end and self._cursor:
            self._reveal()
        self._draw_changes()

    def _place_of(self, key: object) -> int:
        if self._cursor < len(self.rows) and self._key(self.rows[self._cursor]) == key:
            return self._cursor
        found = next((i for i, row in enumerate(self.rows) if self._key(row) == key), None)
        return min(self._cursor, max(0, len(self.rows) - 1)) if found is None else found

    def render_line(self, y: int) -> Strip:
        """The titles, or the row that is at `y` of the widget."""
        self._drawn[y] = self._content(y)
        columns, style = self._columns_for(self._width), self._base
        index = y - 1 + self.scroll_offset.y
        if y == 0:
            return self._strip([(header(columns, self._palette).plain, self._palette.dim)], style)
        if index >= len(self.rows):
            return Strip.blank(self._width, style)
        if self._is_marked(index):
            style = self.get_component_rich_style("table--cursor")
        return self._strip(self._pieces(index), style)

    def _strip(self, cells: Sequence[Cell], base: Style) -> Strip:
        segments = [Segment(text, base + Style.parse(style)) for text, style in cells]
        length = width_of(self._columns_for(self._width))
        return Strip(segments, length).adjust_cell_length(self._width, base)

    def _content(self, y: int) -> object:
        if y == 0:
            return self._columns_for(self._width), self._palette
        index = y - 1 + self.scroll_offset.y
        return (self._pieces(index), self._is_marked(index)) if index < len(self.rows) else None

    def _pieces(self, index: int) -> tuple[Cell, ...]:
        columns = self._columns_for(self._width)
        if index not in self._made:
            self._made[index] = pieces(columns, self.rows[index], self._palette)
        return self._made[index]

    def _is_marked(self, index: int) -> bool:
        return index == self._cursor and self.has_focus

    def _columns_for(self, width: int) -> Fitted[Row]:
        if self._fitted is None or self._fitted[0] != width:
            self._fitted = width, fit(self._columns, width)
            self._made.clear()
        return self._fitted[1]

    def move_to(self, index: int) -> None:
        """Puts the cursor on that row, or on the nearest there is."""
        self._cursor = max(0, min(len(self.rows) - 1, index))
        row = self.current
        self._at = None if row is None else self._key(row)
        self._reveal()
        self._draw_changes()

    def action_move(self, by: int) -> None:
        """Moves the cursor by rows."""
        self.move_to(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Moves the cursor by pages."""
        self.move_to(self._cursor + by * max(1, self.room[1] - 2))

    def action_end(self, by: int) -> None:
        """Moves the cursor to the first or the last row."""
        self.move_to(0 if by < 0 else len(self.rows) - 1)

    def on_click(self, event: events.Click) -> None:
        """Moves the cursor there; a double click opens, a click on a title sorts."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            if (column := self._column_at(offset.x)) is not None:
                self.post_message(self.Headed(self, column))
            return
        index = offset.y - 1 + self.scroll_offset.y
        if index < len(self.rows):
            self.move_to(index)
            if event.chain == 2:
                self.post_message(self.Chosen())

    def _column_at(self, x: int) -> Column[Row] | None:
        start = 0
        for column, width in self._columns_for(self.room[0]):
            if start <= x < start + width + 1:
                return column
            start += width + 1
        return None

    def _reveal(self) -> None:
        top, visible = self.scroll_offset.y, max(1, self.room[1] - 1)
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, force=True)
        elif self._cursor >= top + visible:
            self.scroll_to(y=self._cursor - visible + 1, animate=False, force=True)
