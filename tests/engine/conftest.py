"""Fixtures of the engine's tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Model
from astraea_local.profile import Profile, override
from tests.engine.harness import Harness, MakeHarness


@pytest.fixture
def harness(tiny_path: Callable[[ShapeName], Path]) -> Iterator[MakeHarness]:
    """Makes cores over tiny models; fields of the profile as keyword arguments with `__` for the dot."""
    with _harnesses(tiny_path) as make:
        yield make


@contextmanager
def _harnesses(tiny_path: Callable[[ShapeName], Path]) -> Iterator[MakeHarness]:
    opened: list[Harness | Model] = []

    def make(shape: ShapeName = "tiny", **changes: object) -> Harness:
        usual = {"context__size": 1024, "context__slots": 4, "kv__layout": "per_slot", "model__threads": 1}
        settings: dict[str, object] = {**usual, **changes}
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        model = Model(tiny_path(shape))
        opened.append(model)
        made = Harness(model, override(Profile(), dotted))
        opened.append(made)
        return made

    yield make
    for thing in reversed(opened):
        thing.close()
