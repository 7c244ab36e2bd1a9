"""Bars and graphs have their size, and what is not nothing is seen."""

from hypothesis import given
from hypothesis import strategies as st

from astraea_local.tui.render.bars import bar, graph, meter, sparkline
from astraea_local.tui.render.palette import PLAIN

shares = st.lists(st.floats(0, 1), min_size=1, max_size=5)


@given(shares, st.integers(1, 120))
def test_a_bar_has_its_width_whatever_its_parts(parts: list[float], width: int) -> None:
    assert len(bar([(p, PLAIN.kv) for p in parts], width, PLAIN, [0.9]).plain) == width


def test_a_part_that_is_nearly_nothing_is_seen() -> None:
    assert bar([(0.0001, "red")], 20, PLAIN).plain == "█" + "░" * 19
    assert bar([(0.0, "red")], 20, PLAIN).plain == "░" * 20


def test_watermarks_are_marked_where_they_are() -> None:
    assert bar([(0.2, "red")], 10, PLAIN, [0.5, 0.9]).plain == "██░░░│░░░│"


@given(st.floats(-1, 3), st.integers(1, 80))
def test_a_meter_has_its_width(share: float, width: int) -> None:
    assert len(meter(share, width, "red", PLAIN).plain) == width


@given(st.lists(st.floats(0, 1e9), max_size=300), st.integers(1, 100), st.integers(1, 6))
def test_a_graph_has_its_size(values: list[float], width: int, height: int) -> None:
    lines = graph(values, width, height)
    assert [len(line) for line in lines] == [width] * height


def test_the_newest_value_is_at_the_right_and_small_ones_are_seen() -> None:
    assert sparkline([0, 1, 1000], 4) == "  ▁█"
    assert sparkline([], 4) == "    "
    assert graph([1, 2], 2, 2) == [" █", "██"]
