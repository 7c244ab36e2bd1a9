"""Columns give way by rank, and a line has the table's width."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from astraea_local.tui.render.palette import PLAIN
from astraea_local.tui.render.table import Column, fit, header, line, pieces, width_of

COLUMNS: tuple[Column[str], ...] = (
    Column("NAME", 8, lambda row, _: (row, ""), grow=1, most=20),
    Column("A", 5, lambda _, p: ("a", p.ok), right=True, rank=1),
    Column("B", 5, lambda _, p: ("b", p.dim), rank=2),
    Column("WHY", 6, lambda row, _: (row * 9, ""), grow=2, rank=3),
)


@given(st.integers(8, 200))
def test_lines_are_as_wide_as_their_titles_and_fit(width: int) -> None:
    columns = fit(COLUMNS, width)
    titles = header(columns, PLAIN).plain
    assert len(titles) <= width
    assert len(line(columns, "coder", PLAIN).plain) == len(titles) == width_of(columns)


@given(st.integers(8, 200))
def test_neighbours_of_one_style_are_one_piece(width: int) -> None:
    made = pieces(fit(COLUMNS, width), "coder", PLAIN)
    assert all(one[1] != other[1] for one, other in pairwise(made))
    assert len(made) <= 4


def test_the_highest_rank_goes_first_and_the_first_column_stays() -> None:
    assert [c.title for c, _ in fit(COLUMNS, 30)] == ["NAME", "A", "B", "WHY"]
    assert [c.title for c, _ in fit(COLUMNS, 26)] == ["NAME", "A", "B"]
    assert [c.title for c, _ in fit(COLUMNS, 3)] == ["NAME"]


def test_room_that_is_left_goes_to_those_that_grow_and_not_beyond_their_most() -> None:
    widths = {c.title: w for c, w in fit(COLUMNS, 200)}
    assert widths["NAME"] == 20
    assert widths["A"] == 5
    assert sum(widths.values()) + 3 == 200


def test_what_rows_say_is_harmless() -> None:
    assert line(fit(COLUMNS, 20), "\x1b[2Jx", PLAIN).plain.startswith("�[2Jx ")
