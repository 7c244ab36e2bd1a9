"""Trains quantile models of output lengths and tool waits on the recorded history; needs torch to train."""

import importlib.util


class LearnedUnavailable(Exception):
    """Training was asked for, but torch is not installed; the message says how to install it."""

    def __init__(self) -> None:
        super().__init__("training needs torch: pip install 'astraea-local[learned]'")


def available() -> bool:
    """Whether torch is installed; does not import it."""
    return importlib.util.find_spec("torch") is not None
