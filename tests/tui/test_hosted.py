"""`serve` on a terminal: a server in a process of its own, and what becomes of it when the screen closes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import trustme

from astraea_local.bench.random_model import ShapeName
from tests.conftest import Server, free_port
from tests.tui.terminal import Terminal

pytestmark = pytest.mark.e2e


@pytest.fixture
def serving(tmp_path: Path, tiny_path: Callable[[ShapeName], Path]) -> tuple[str, str]:
    """Options of a server that starts fast."""
    file = tmp_path / "tiny.toml"
    model = f'[model]\nsource = "{tiny_path("tiny")}"\ngpu_layers = 0\nthreads = 1\n'
    file.write_text(f"{model}[prediction]\nhistory = false\n")
    return "--profile", str(file)


def children(terminal: Terminal) -> list[psutil.Process]:
    """The server and its engine."""
    return psutil.Process(terminal.process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end."""
    return not psutil.wait_procs(processes, timeout=30)[1]


@pytest.mark.parametrize("keys", ["q\r", "\x03\x03"], ids=["asked", "twice Ctrl-C"])
def test_the_server_is_stopped(serving: tuple[str, str], keys: str) -> None:
    """The first answer stops it, and so does impatience."""
    with Terminal("serve", *serving, "--port", "0") as terminal:
        terminal.until("● ready")
        started = children(terminal)
        terminal.press(keys[0])
        terminal.until("Close the screen?")
        terminal.press(keys[1])
        code, lines = terminal.end()
        assert (code, lines[-1]) == (0, "stopped")
        assert started
        assert gone(started)


def test_the_server_goes_on(serving: tuple[str, str]) -> None:
    """It says where it is and how to stop it, and both are true."""
    with Terminal("serve", *serving, "--port", "0") as terminal:
        terminal.until("● ready")
        terminal.press("q")
        terminal.until("Close the screen?")
        terminal.press("\x1b[B\r")
        code, lines = terminal.end()
    words = " ".join(lines)
    url, pid = re.search(r"goes on at (\S+); ", words), re.search(r"`kill -INT (\d+)`", words)
    assert code == 0, words
    assert url is not None
    assert pid is not None
    server = psutil.Process(int(pid[1]))
    try:
        assert httpx.get(f"{url[1]}/health", timeout=10).status_code == 200
    finally:
        os.kill(server.pid, signal.SIGINT)
    assert gone([server])


def test_staying_changes_nothing(serving: tuple[str, str]) -> None:
    with Terminal("serve", *serving, "--port", "0") as terminal:
        terminal.until("● ready")
        terminal.press("q")
        terminal.until("Close the screen?")
        terminal.press("\x1b[B\x1b[B\r")
        terminal.until("1 memory")
        terminal.press("?")
        terminal.until("keys are changed in")
        assert all(process.is_running() for process in children(terminal))
        terminal.press("\x03")
        terminal.until("Close the screen?")
        terminal.press("\x03")
        assert terminal.end()[0] == 0


def test_the_server_ends_with_a_screen_that_was_killed(serving: tuple[str, str]) -> None:
    with Terminal("serve", *serving, "--port", "0") as terminal:
        terminal.until("● ready")
        started = children(terminal)
        terminal.process.kill()
        assert gone(started)


def test_the_server_ends_with_a_terminal_that_vanished(serving: tuple[str, str]) -> None:
    """Also where the hangup signal is kept away, as by `nohup`."""
    with Terminal("serve", *serving, "--port", "0") as terminal:
        terminal.until("● ready")
        started = children(terminal)
        terminal.vanish()
        terminal.process.wait(30)
        assert started
        assert gone(started)


def test_without_a_terminal_there_are_plain_lines(serving: tuple[str, str], tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    command = [sys.executable, "-m", "astraea_local", "serve", *serving, "--port", str(port)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        server = Server(process, f"http://127.0.0.1:{port}", log)
        server.wait_until(server.healthy)
        server.wait_until(lambda: server.url in log.read_text())
        assert server.stop() == 0
    text = log.read_text()
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "stopped"


def test_no_tui_on_a_terminal(serving: tuple[str, str]) -> None:
    with Terminal("serve", *serving, "--no-tui", "--port", "0") as terminal:
        terminal.until("http://127.0.0.1:")
        terminal.process.send_signal(signal.SIGINT)
        code, lines = terminal.end()
    assert (code, lines[-1]) == (0, "stopped")
    assert not any("1 memory" in line for line in lines)


def test_a_server_that_cannot_start(server: Server, serving: tuple[str, str]) -> None:
    """Its last words are this command's."""
    port = urlsplit(server.url).port
    with Terminal("serve", *serving, "--port", str(port)) as terminal:
        code, lines = terminal.end()
    words = f"astraea-local: port {port} on 127.0.0.1 is in use: choose another with --port or server.port"
    assert (code, lines[-1]) == (2, words)


def test_a_server_with_tls_and_keys(serving: tuple[str, str], tmp_path: Path) -> None:
    """The certificate is for another name than the UI's, by an authority that this computer does not have."""
    issued = trustme.CA().issue_cert("llm.lan")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("laptop: 0123456789abcdef0123\n")
    secure = ("--tls-cert", str(cert), "--tls-key", str(key), "--api-key-file", str(keys))
    port = free_port()
    with Terminal("serve", *serving, *secure, "--port", str(port)) as terminal:
        terminal.until("● ready")
        assert httpx.get(f"https://127.0.0.1:{port}/metrics", verify=False).status_code == 401
        terminal.press("q")
        terminal.until("Close the screen?")
        terminal.press("\r")
        assert terminal.end()[0] == 0
