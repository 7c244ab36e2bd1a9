"""A widget that makes only the lines that are on the screen and have changed: the base of all panels."""

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget


class Lines(ScrollView, can_focus=True):
    """A panel of lines of text."""

    class Narrowed(Message):
        """A scrollbar came or went: there is room for another number of columns."""

    def __init__(self, *, id: str, title: str = "") -> None:  # noqa: A002
        super().__init__(id=id)
        self.border_title = Content(title)
        self._title = title
        self._lines: Sequence[Text] = ()
        self._drawn: dict[int, object] = {}
        self._width = 0
        self._base = Style.null()

    def show(self, lines: Sequence[Text]) -> None:
        """Puts them in place of the former ones."""
        self._lines = lines
        self._resize_to(len(lines))
        self._draw_changes()

    @property
    def room(self) -> tuple[int, int]:
        """Columns and lines that there are for text."""
        size = self.scrollable_content_region.size
        return size.width, size.height

    def retitle(self, text: str) -> None:
        """Sets the border's title, as it is: clients choose what is in it."""
        if self._title != text:
            self._title = text
            # Setting `border_title` would draw the whole panel again.
            self._border_title = Content(text)
            self._refresh_lines([-self.gutter.top])

    def watch_show_vertical_scrollbar(self) -> None:
        """Has the lines made for the new width."""
        self.post_message(self.Narrowed())

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines in a region; what all of them share is worked out once."""
        self._width = self.room[0]
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """The line that is at `y` of the widget."""
        self._drawn[y] = self._content(y)
        index = y + self.scroll_offset.y
        if index >= len(self._lines):
            return Strip.blank(self._width, self._base)
        text, console = self._lines[index], self.app.console
        strip = Strip(text.render(console)).adjust_cell_length(self._width)
        # Rich leaves out the style of a text that has no other.
        return strip.apply_style(self._base + console.get_style(text.style))

    def _content(self, y: int) -> object:
        """What is to be seen on that line of the widget: equal only if it looks the same."""
        index = y + self.scroll_offset.y
        if index >= len(self._lines):
            return None
        text = self._lines[index]
        return text.plain, text.style, text.spans

    def _draw_changes(self) -> None:
        self._width, height = self.room
        changed = [y for y in range(height) if y not in self._drawn or self._drawn[y] != self._content(y)]
        self._refresh_lines(changed)

    def _refresh_lines(self, lines: Sequence[int]) -> None:
        if lines:
            # With the border: a part of a line would have to be cut out of it.
            left, width = -self.gutter.left, self.outer_size.width
            self.refresh(*(Region(left, y, width, 1) for y in lines))

    def _resize_to(self, lines: int) -> None:
        size = Size(self.room[0], lines)
        if self.virtual_size.height == lines:
            return
        if self.styles.is_auto_height:
            self.virtual_size = size
        else:
            # Other panels stay where they are, so that only the scrollbar has to know.
            self.set_reactive(Widget.virtual_size, size)
            self._scroll_update(size)
