"""Models and servers that several of these modules share."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from astraea_local.bench import random_model
from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Guides, Model, Vocab
from tests.conftest import Server, StartServer

TinyPath = Callable[[ShapeName], Path]

# The first text of a run makes hypothesis build a table of all characters: seconds, where servers run too.
settings.register_profile("patient", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def profile(folder: Path, model: Path, more: str = "", of_model: str = "") -> str:
    """The path of a profile for a model of random weights, in a folder of its own."""
    file = folder / "profile.toml"
    file.write_text(
        f'[model]\nsource = "{model}"\ngpu_layers = 0\nthreads = 1\n{of_model}'
        f"[prediction]\nhistory = false\n{more}"
    )
    return str(file)


@pytest.fixture
def swept() -> Iterator[None]:
    """For tests whose clients leave sockets and event loops behind, and that ignore the warnings.

    Collected later, within a test that does not, they would fail that one.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()


@pytest.fixture(scope="session")
def vocab(demo_path: Path) -> Iterator[Vocab]:
    with Model(demo_path, vocab_only=True) as model:
        yield model.vocab


@pytest.fixture(scope="session")
def guides(vocab: Vocab) -> Guides:
    return Guides(vocab)


@pytest.fixture(scope="session")
def fast_path(demo_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights behind SmolLM2's vocabulary and template, where it does not matter what is said."""
    file = tmp_path_factory.mktemp("fast") / "fast.gguf"
    return random_model.write(file, "tiny", tokenizer=demo_path)


@pytest.fixture(scope="session")
def fast(start_server: StartServer, fast_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with default settings and that model, for tests that leave it as it was."""
    return start_server("--profile", profile(tmp_path_factory.mktemp("fast_server"), fast_path))


@pytest.fixture(scope="session")
def roomy(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """SmolLM2; its jobs have room for the instructions that frameworks send."""
    profile = tmp_path_factory.mktemp("roomy") / "roomy.toml"
    profile.write_text('[context]\nsize = 8192\nslots = 2\n[kv]\nlayout = "per_slot"\n')
    return start_server("--profile", str(profile))


@pytest.fixture(scope="session")
def narrow(
    start_server: StartServer, tiny_path: TinyPath, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """One slot, first come first served, a sign of life every 50 ms, and room for answers without end."""
    more = (
        "[context]\nsize = 32768\nslots = 1\n[kv]\nlayout = 'per_slot'\n"
        "[scheduler]\npolicy = 'fcfs'\n[server]\nkeepalive_s = 0.05\n"
    )
    folder = tmp_path_factory.mktemp("narrow")
    return start_server("--profile", profile(folder, tiny_path("tiny"), more))


@pytest.fixture(scope="session")
def small(start_server: StartServer, fast_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """It takes one request at a time, of at most 1 MiB, and its one job has little room."""
    more = "[context]\nsize = 2048\nslots = 1\n[server]\nmax_queue = 1\nmax_body_mib = 1\n"
    return start_server("--profile", profile(tmp_path_factory.mktemp("small"), fast_path, more))


@pytest.fixture(scope="session")
def strict(
    start_server: StartServer, tiny_path: TinyPath, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """It waits for nobody."""
    more = (
        "[context]\nsize = 65536\nslots = 2\n[kv]\nlayout = 'per_slot'\n[server]\nrequest_timeout_s = 3.0\n"
        "read_timeout_s = 1.0\nslow_reader_s = 1.0\nmax_connections = 40\n"
    )
    folder = tmp_path_factory.mktemp("strict")
    return start_server("--profile", profile(folder, tiny_path("tiny"), more))
