"""A widget that makes only the lines that are on the screen: the base of all panels."""

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip


class Lines(ScrollView, can_focus=True):
    """A panel of lines of text."""

    def __init__(self, *, id: str, title: str = "") -> None:  # noqa: A002
        super().__init__(id=id)
        self.border_title = title
        self._lines: Sequence[Text] = ()
        self._width = 0
        self._base = Style.null()

    def show(self, lines: Sequence[Text]) -> None:
        """Puts them in place of the former ones."""
        self._lines = lines
        self._resize_to(len(lines))
        self.refresh()

    @property
    def room(self) -> tuple[int, int]:
        """Columns and lines that there are for text."""
        size = self.scrollable_content_region.size
        return size.width, size.height

    def retitle(self, text: str) -> None:
        """Sets the border's title; only a new one costs anything."""
        if self.border_title != text:
            self.border_title = text

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines in a region; what all of them share is worked out once."""
        self._width = self.room[0]
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """The line that is at `y` of the widget."""
        index = y + self.scroll_offset.y
        if index >= len(self._lines):
            return Strip.blank(self._width, self._base)
        return self._strip(self._lines[index], self._width, self._base)

    def _strip(self, text: Text, width: int, style: Style) -> Strip:
        strip = Strip(text.render(self.app.console))
        return strip.adjust_cell_length(width, style).apply_style(style)

    def _resize_to(self, lines: int) -> None:
        size = Size(self.room[0], lines)
        if self.virtual_size.height != lines:
            self.virtual_size = size
