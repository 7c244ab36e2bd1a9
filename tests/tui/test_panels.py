"""Panels draw what has changed and nothing else, and take titles as they are."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.panels.table import Table
from astraea_local.tui.render.palette import MONOCHROME, PLAIN
from astraea_local.tui.render.table import Column
from tests.tui.driving import text

Row = tuple[str, int]
COLUMNS: Sequence[Column[Row]] = (
    Column("NAME", 8, lambda row, p: (row[0], p.accent), grow=1),
    Column("VALUE", 5, lambda row, _: (str(row[1]), ""), right=True),
)


class Panels(App[str]):
    """A panel of lines above a table."""

    CSS = "Lines { height: 1fr; border: round white; overflow-x: hidden; scrollbar-size-vertical: 1; }"

    def compose(self) -> ComposeResult:
        yield Lines(id="lines", title="lines")
        yield Table[Row](COLUMNS, id="table", title="table", key=lambda row: row[0])


@asynccontextmanager
async def shown(
    rows: Sequence[Row], lines: Sequence[Text]
) -> AsyncIterator[tuple[Pilot[str], Table[Row], Lines]]:
    async with Panels().run_test(size=(40, 20)) as pilot:
        table, panel = pilot.app.query_one(Table), pilot.app.query_one("#lines", Lines)
        table.show_rows(rows, PLAIN)
        panel.show(lines)
        await pilot.pause()
        yield pilot, table, panel


def drawn_again(panel: Lines) -> list[int]:
    """The lines of its inside that the next picture draws again."""
    return sorted(region.y - panel.gutter.top for region in panel._repaint_regions)


ROWS: list[Row] = [(f"job-{n}", n) for n in range(30)]


async def test_rows_that_look_the_same_are_not_drawn_again() -> None:
    async with shown(ROWS, ()) as (_, table, _panel):
        table.show_rows([*ROWS], PLAIN)
        assert drawn_again(table) == []
        table.show_rows([*ROWS[:2], ("job-2", 99), *ROWS[3:]], PLAIN)
        assert drawn_again(table) == [3]


async def test_what_is_out_of_sight_costs_nothing() -> None:
    async with shown(ROWS, ()) as (_, table, _panel):
        assert table.room[1] < len(ROWS)
        table.show_rows([*ROWS[:-1], ("job-29", 99)], PLAIN)
        assert drawn_again(table) == []


async def test_rows_that_come_and_go_lay_nothing_out_anew() -> None:
    async with shown(ROWS, ()) as (pilot, table, _panel):
        layouts = table._layout_updates
        table.show_rows(ROWS[:25], PLAIN)
        assert drawn_again(table) == []
        table.show_rows([*ROWS, ("last", 1)], PLAIN)
        await pilot.pause()
        assert table._layout_updates == layouts
        await pilot.press("tab", "end")
        assert "last" in text(pilot)


async def test_a_scrollbar_that_comes_takes_its_column() -> None:
    async with shown(ROWS[:2], ()) as (pilot, table, _panel):
        width = table.room[0]
        table.show_rows(ROWS, PLAIN)
        await pilot.pause()
        await pilot.pause()
        assert table.room[0] < width
        assert all(line.endswith("│") for line in text(pilot).splitlines()[11:19])


async def test_other_colours_are_drawn() -> None:
    async with shown(ROWS, ()) as (_, table, _panel):
        table.show_rows(ROWS, MONOCHROME)
        assert drawn_again(table) == list(range(table.room[1]))


async def test_lines_that_look_the_same_are_not_drawn_again() -> None:
    lines = [Text("one", style="red", end=""), Text("two", end="")]
    async with shown((), lines) as (_, _table, panel):
        panel.show([line.copy() for line in lines])
        assert drawn_again(panel) == []
        panel.show([Text("one", style="blue", end=""), lines[1]])
        assert drawn_again(panel) == [0]
        panel.show(lines[:1])
        assert drawn_again(panel) == [0, 1]


async def test_a_line_of_one_style_has_it() -> None:
    async with shown((), [Text("warning", style="bright_red", end="")]) as (_, _table, panel):
        first, *_rest = panel.render_line(0)
        assert first.style is not None
        assert first.style.color is not None
        assert first.style.color.name == "bright_red"


@pytest.mark.parametrize("title", ["[bold]x[/]", "matching '[/'", "[/red]", "a[b"])
async def test_titles_are_no_markup(title: str) -> None:
    async with shown((), ()) as (pilot, _table, panel):
        panel.retitle(title)
        await pilot.pause()
        assert f" {title} " in text(pilot)
