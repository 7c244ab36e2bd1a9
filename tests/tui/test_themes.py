"""Every theme gives a palette in which the states can be told apart."""

import pytest
from rich.style import Style
from textual.theme import BUILTIN_THEMES

from astraea_local.tui import themes
from astraea_local.tui.render.palette import PLAIN


@pytest.mark.parametrize("name", [themes.DEFAULT, *BUILTIN_THEMES])
def test_every_theme_makes_a_palette_of_valid_styles(name: str) -> None:
    theme = themes.ASTRAEA if name == themes.DEFAULT else BUILTIN_THEMES[name]
    made = themes.palette(theme.to_color_system().generate() | theme.variables, ansi=theme.ansi)
    for style in (made.text, made.dim, made.title, made.ok, made.warn, made.bad, made.track, made.decode):
        Style.parse(style)


def test_our_own_tells_the_states_apart() -> None:
    made = themes.palette(themes.ASTRAEA.to_color_system().generate() | themes.ASTRAEA.variables, ansi=False)
    states = ("queued", "prefill", "decode", "waiting", "preempted")
    assert len({made.of_state(state) for state in states}) == len(states)
    assert made.of_state("unheard of") == made.dim


def test_without_colours_the_terminals_own_are_used() -> None:
    assert themes.palette({}, ansi=True) is PLAIN
    assert themes.palette({}, ansi=False) is PLAIN
