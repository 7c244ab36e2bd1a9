"""Fixtures of the engine's tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Model, amx
from astraea_local.profile import Profile, override
from tests.engine.harness import Harness, MakeHarness


@pytest.fixture(scope="session", autouse=True)
def _reference_without_amx() -> Iterator[None]:
    """`llama_cpp.Llama` has no switch for what the engine turns off where it would end the process."""
    defaults = llama_cpp.llama_model_default_params

    def params() -> llama_cpp.llama_model_params:
        changed = defaults()
        changed.use_extra_bufts = not amx.must_be_off()
        return changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", params)
        yield


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
