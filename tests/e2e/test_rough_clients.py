"""A server among clients that do everything wrong."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from astraea_local.bench import rough
from astraea_local.bench.random_model import ShapeName
from tests.conftest import StartServer

pytestmark = pytest.mark.e2e


async def test_healthy_requests_are_served_among_rough_clients_and_memory_stays(
    start_server: StartServer, tiny_path: Callable[[ShapeName], Path], tmp_path: Path
) -> None:
    profile = tmp_path / "rough.toml"
    profile.write_text(
        f'[model]\nsource = "{tiny_path("tiny")}"\ngpu_layers = 0\nthreads = 1\n'
        "[prediction]\nhistory = false\n"
        "[server]\nread_timeout_s = 2.0\nslow_reader_s = 2.0\n"
    )
    server = start_server("--profile", str(profile))
    port = urlsplit(server.url).port
    assert port is not None
    load = rough.Load(malformed=700, half_open=24, slow=8, floods=8)
    outcome = await rough.run("127.0.0.1", port, server.process.pid, load)
    assert outcome.statuses["hung"] == 0
    assert not [status for status in outcome.statuses if status.startswith(("2", "5"))]
    assert outcome.healthy > 0
    assert outcome.healthy_failed == 0
    assert outcome.memory_after - outcome.memory_before < 64
    assert server.state()["restarts"] == 0
    assert "Traceback" not in server.log.read_text()
