"""Figures in few characters, and names that cannot harm a terminal."""

import unicodedata
from functools import lru_cache

from rich.cells import cell_len, set_cell_size

_ELLIPSIS = "…"
_UNITS = "KMGTP"


def seconds(value: float) -> str:
    """A duration in at most five characters: `0.4s`, `12s`, `3m05`, `2h10`, `4d07`."""
    if value < 10:
        return f"{value:.1f}s"
    if value < 60:
        return f"{value:.0f}s"
    if value < 3600:
        return f"{int(value) // 60}m{int(value) % 60:02d}"
    if value < 100 * 3600:
        return f"{int(value) // 3600}h{int(value) % 3600 // 60:02d}"
    days, hours = divmod(int(value) // 3600, 24)
    return f"{days}d{hours:02d}" if days < 100 else f"{days}d"


def count(value: float) -> str:
    """A number in at most five characters: `980`, `9.8k`, `45k`, `1.2M`."""
    return _scaled(value, 1000, "kMBTQ")


def calls(number: int) -> str:
    """`1 call`, `12 calls`."""
    return f"{number} call{'' if number == 1 else 's'}"


def size(value: float) -> str:
    """Bytes in at most five characters, by powers of 1,024: `0`, `3.4M`, `120M`, `7.9G`."""
    return _scaled(value, 1024, _UNITS)


def rate(value: float) -> str:
    """Tokens per second: `0.8`, `42`, `1.2k`."""
    return f"{value:.1f}" if 0 < value < 9.95 else count(value)


def percent(share: float) -> str:
    """A share in at most four characters."""
    return f"{100 * share:.0f}%"


def _scaled(value: float, base: int, units: str) -> str:
    if value < 999.5:
        return f"{value:.0f}"
    for unit in units:
        value /= base
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 999.5 or unit == units[-1]:
            return f"{value:.0f}{unit}"
    raise AssertionError("unreachable")


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """The text with everything that moves a cursor or hides text replaced: clients choose job names."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if c in "\n\t" else "�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c
        for c in text
    )


@lru_cache(maxsize=16384)
def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Exactly `width` cells: cut with an ellipsis, or padded."""
    if text.isascii():
        if len(text) <= width:
            return text.rjust(width) if right else text.ljust(width)
        return text[: width - 1] + _ELLIPSIS if width > 0 else ""
    length = cell_len(text)
    if length <= width:
        return " " * (width - length) + text if right else text + " " * (width - length)
    return set_cell_size(text, width - 1) + _ELLIPSIS if width > 0 else ""
