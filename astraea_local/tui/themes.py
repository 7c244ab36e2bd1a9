"""Our own theme, and the palette that any theme makes of itself."""

from collections.abc import Mapping

from textual.color import Color, ColorParseError
from textual.theme import Theme

from astraea_local.tui.render.palette import PLAIN, Palette

DEFAULT = "astraea"

# After Okabe and Ito: told apart with any common colour blindness, and by lightness alone.
ASTRAEA = Theme(
    name=DEFAULT,
    primary="#56b4e9",
    secondary="#0072b2",
    accent="#e69f00",
    warning="#f0e442",
    error="#ee7733",
    success="#2bc29a",
    foreground="#d8dee6",
    background="#0d1117",
    surface="#121820",
    panel="#1b2430",
    dark=True,
    variables={
        "astraea-queued": "#f0e442",
        "astraea-prefill": "#56b4e9",
        "astraea-decode": "#2bc29a",
        "astraea-waiting": "#cc8fc0",
        "astraea-preempted": "#ee7733",
        "astraea-compute": "#cc8fc0",
        "footer-key-foreground": "#e69f00",
        "block-cursor-background": "#274b66",
        "block-cursor-foreground": "#ffffff",
        "border": "#56b4e9",
    },
)


def palette(variables: Mapping[str, str], *, ansi: bool) -> Palette:
    """The colours of a theme by meaning; of one in the terminal's own colours the plain palette."""
    if ansi:
        return PLAIN
    try:
        foreground = Color.parse(variables["foreground"])
        background = Color.parse(variables["background"])
    except (KeyError, ColorParseError):
        return PLAIN

    def named(name: str, otherwise: str) -> str:
        try:
            return Color.parse(variables.get(f"astraea-{name}") or variables[otherwise]).hex6.lower()
        except (KeyError, ColorParseError):
            return foreground.hex6.lower()

    return Palette(
        text=foreground.hex6.lower(),
        dim=foreground.blend(background, 0.45).hex6.lower(),
        title=f"bold {foreground.hex6.lower()}",
        accent=named("accent", "accent"),
        ok=named("ok", "success"),
        warn=named("warn", "warning"),
        bad=named("bad", "error"),
        queued=named("queued", "warning"),
        prefill=named("prefill", "primary"),
        decode=named("decode", "success"),
        waiting=named("waiting", "secondary"),
        preempted=named("preempted", "error"),
        weights=named("weights", "secondary"),
        kv=named("kv", "primary"),
        compute=named("compute", "success"),
        others=named("others", "accent"),
        track=foreground.blend(background, 0.78).hex6.lower(),
    )
