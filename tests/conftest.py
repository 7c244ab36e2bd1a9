"""Fixtures that several folders share: models, and a running server."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from astraea_local.bench import random_model
from astraea_local.engine.binding import Model
from astraea_local.model_source import resolve

# Servers under test must neither read nor write what the user's own have learned, nor take over KV states
# that they parked.
_home = tempfile.TemporaryDirectory(prefix="astraea-tests-", ignore_cleanup_errors=True)
atexit.register(_home.cleanup)
os.environ["XDG_STATE_HOME"] = f"{_home.name}/state"
os.environ["XDG_CACHE_HOME"] = f"{_home.name}/cache"

_START_S = 120.0
_STOP_S = 30.0


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The embedded SmolLM2."""
    return resolve("demo")


@pytest.fixture(scope="session")
def demo_model(demo_path: Path) -> Iterator[Model]:
    """SmolLM2 with its weights, shared by the tests of a run."""
    with Model(demo_path) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[random_model.ShapeName], Path]:
    """Paths of random-weight models by shape: `tiny`, `tiny-swa`, `tiny-recurrent`, `tiny-hybrid`."""
    folder = tmp_path_factory.mktemp("models")

    def path(shape: random_model.ShapeName) -> Path:
        file = folder / f"{shape}.gguf"
        return file if file.exists() else random_model.write(file, shape)

    return path


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Server:
    """A running `astraea-local serve`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    _closed: bool = field(default=False)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def state(self) -> dict[str, object]:
        """The StateFrame."""
        answer = httpx.get(f"{self.url}/astraea/v1/state", timeout=10)
        answer.raise_for_status()
        frame: dict[str, object] = answer.json()
        return frame

    def engine_pid(self) -> int:
        """Process id of the engine."""
        server = self.state()["server"]
        assert isinstance(server, dict)
        return int(server["pid"])

    def wait_until(
        self, is_true: Callable[[], bool], seconds: float = 30.0, *, stopped: bool = False
    ) -> None:
        """Waits for a condition; fails with the server's log, at once when it stopped unexpectedly."""
        deadline = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > deadline or (self.process.poll() is not None and not stopped):
                pytest.fail(f"condition not met within {seconds} s; the server said:\n{self.log.read_text()}")
            time.sleep(0.05)

    def healthy(self) -> bool:
        """Whether /health answers 200."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, number: int = signal.SIGINT) -> int:
        """Stops it as a user would and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_STOP_S)


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers with the given arguments; all are stopped at the end of the run."""
    servers: list[Server] = []

    def start(*arguments: str, healthy: bool = True) -> Server:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        command = [
            sys.executable,
            "-m",
            "astraea_local",
            "serve",
            "--no-tui",
            "--port",
            str(port),
            *arguments,
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"}
            )
        server = Server(process, f"http://127.0.0.1:{port}", log)
        servers.append(server)
        if healthy:
            server.wait_until(server.healthy, _START_S)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Server:
    """A server with the demo model and default settings, for tests that leave it as it was."""
    return start_server()
