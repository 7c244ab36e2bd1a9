"""Figures are short and nearly right; names are harmless and as wide as they are to be."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from astraea_local.tui.render.units import clean, count, fitted, percent, rate, seconds, size

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0s"),
        (0.44, "0.4s"),
        (9.9, "9.9s"),
        (12, "12s"),
        (59.4, "59s"),
        (60, "1m00"),
        (185, "3m05"),
        (3599.9, "59m59"),
        (7800, "2h10"),
        (359_999, "99h59"),
        (360_000, "4d04"),
        (86400 * 100, "100d"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


def _read(text: str) -> float:
    """The duration that a person reads."""
    parts = re.fullmatch(r"(\d+|\d\.\d|10\.0)([smhd])(\d\d)?", text)
    assert parts is not None, text
    below = {"s": 0, "m": 1, "h": 60, "d": 3600}[parts[2]]
    return float(parts[1]) * _UNITS[parts[2]] + int(parts[3] or 0) * below


@given(st.floats(0, 86400 * 9999))
def test_a_duration_is_short_and_nearly_right(value: float) -> None:
    assert len(seconds(value)) <= 5
    assert abs(_read(seconds(value)) - value) <= max(0.51, value / 60)


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_a_longer_duration_never_looks_shorter(a: float, b: float) -> None:
    assert _read(seconds(min(a, b))) <= _read(seconds(max(a, b)))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (45_600, "46k"), (8_030_000_000, "8.0B")]
)
def test_counts(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1 << 20, "1.0M"), (24 << 30, "24G"), (999, "999")])
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


def test_rates_and_shares() -> None:
    assert (rate(0), rate(0.84), rate(42.3), rate(1234)) == ("0", "0.8", "42", "1.2k")
    assert (percent(0), percent(0.456), percent(1)) == ("0%", "46%", "100%")


@given(st.floats(0, 1e17))
def test_figures_are_short(value: float) -> None:
    assert len(count(value)) <= 5
    assert len(size(value)) <= 5


@given(st.text(max_size=60))
def test_a_cleaned_text_moves_no_cursor(text: str) -> None:
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in clean(text))
    assert len(clean(text)) == len(text)


@given(st.text(max_size=60), st.integers(1, 40), st.booleans())
def test_a_fitted_text_has_its_width(text: str, width: int, right: bool) -> None:
    assert cell_len(fitted(clean(text), width, right=right)) == width


def test_what_is_cut_says_so() -> None:
    assert fitted("reviewer", 5) == "revi…"
    assert fitted("日本語日本語", 5) == "日本…"
