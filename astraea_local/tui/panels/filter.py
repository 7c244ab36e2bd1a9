"""The line in which to type what to look for."""

from textual.widgets import Input

from astraea_local.tui.render.units import clean


class Filter(Input):
    """Hidden until it is asked for; takes any paste, and shows nothing that moves a cursor."""

    def __init__(self, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, id="filter")

    def validate_value(self, value: str) -> str:
        """What was typed or pasted, harmless."""
        return clean(value)
