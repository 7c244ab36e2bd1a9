"""Runs the HTTP server and the engine together, from the first byte of the model to a clean end."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn

from astraea_local.api.app import create_app
from astraea_local.api.auth import ApiKeys
from astraea_local.api.connections import GuardedProtocol
from astraea_local.api.origins import is_loopback
from astraea_local.api.service import Service
from astraea_local.api.text_model import TextModel
from astraea_local.engine.messages import Ready
from astraea_local.engine.supervisor import Engine
from astraea_local.engine.worker import EngineSpec
from astraea_local.profile import ModelSettings, Profile, ServerSettings

_logger = logging.getLogger(__name__)
_CLOSE_S = 2
# What the kernel keeps of an answer that nobody reads; without it several MiB for each connection.
_SEND_BUFFER = 128 << 10


class ServeError(Exception):
    """The server cannot start; the message is one line for a user."""


def listen(settings: ServerSettings, keys: ApiKeys) -> socket.socket:
    """A bound socket. Raises `ServeError`: better now than after the model is loaded."""
    if not is_loopback(settings.host) and not keys:
        raise ServeError(
            f"server.host {settings.host!r} can be reached by other machines: give an API key with "
            "--api-key-file, --api-key or ASTRAEA_API_KEY, or listen on 127.0.0.1"
        )
    _check_certificate(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            where = f"port {settings.port} on {settings.host}"
            raise ServeError(f"{where} is in use: choose another with --port or server.port") from None
        raise ServeError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return sock


def _check_certificate(settings: ServerSettings) -> None:
    if not settings.tls_cert:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key, lambda: ""
        )
    except FileNotFoundError:
        missing = next(f for f in (settings.tls_cert, settings.tls_key) if not Path(f).is_file())
        raise ServeError(f"{missing}: no such file; see --tls-cert and --tls-key") from None
    except (OSError, ValueError) as error:
        files = f"{settings.tls_cert} and {settings.tls_key}"
        raise ServeError(f"{files} are not a PEM certificate and its unencrypted key: {error}") from None


def _chat_template(settings: ModelSettings) -> str | None:
    """The template that takes the place of the model's own, if there is one."""
    if not settings.chat_template:
        return None
    path = Path(settings.chat_template).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ServeError(f"{path}: cannot read the chat template: {reason}") from None


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to us: a stop first lets the engine drain, and ends with status 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    profile: Profile,
    model_path: Path,
    sock: socket.socket,
    *,
    keys: ApiKeys,
    on_progress: Callable[[float], None],
    on_ready: Callable[[Ready, str], None],
    log_level: int = logging.WARNING,
) -> None:
    """Serves until SIGINT or SIGTERM; a second one cuts draining short.

    `on_progress` gets the loaded share of the model, `on_ready` the engine's facts and the base URL.
    Raises `ServeError`, `EngineStartError` and `ModelLoadError`.
    """
    text = TextModel(model_path, profile.model.tool_format, _chat_template(profile.model))
    engine = Engine(EngineSpec(profile, model_path, log_level), on_progress=on_progress)
    service = Service(profile, engine, text)

    class Connection(GuardedProtocol):
        settings = profile.server

    config = uvicorn.Config(
        create_app(service, keys),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=profile.server.tls_cert or None,
        ssl_keyfile=profile.server.tls_key or None,
        timeout_graceful_shutdown=_CLOSE_S,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = _Uvicorn(config)
    host, port = sock.getsockname()[:2]
    scheme = "https" if profile.server.tls_cert else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    async with _running(server, sock), _signals() as stop:
        try:
            started = asyncio.create_task(engine.start())
            stopped = asyncio.create_task(stop.first.wait())
            await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                on_ready(started.result(), url)
                await stopped
        finally:
            started.cancel()
            stopped.cancel()
            draining = asyncio.create_task(engine.stop(profile.server.drain_s))
            cut = asyncio.create_task(stop.second.wait())
            await asyncio.wait((draining, cut), return_when=asyncio.FIRST_COMPLETED)
            cut.cancel()
            if not draining.done():
                draining.cancel()
                await engine.stop(0)
    text.close()


class _Stop:
    """The first request to stop, and the impatient second."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def request(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@asynccontextmanager
async def _signals() -> AsyncIterator[_Stop]:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.request)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _running(server: uvicorn.Server, sock: socket.socket) -> AsyncIterator[None]:
    """The HTTP server in the background; at the end it closes its connections within seconds."""
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task
        sock.close()
