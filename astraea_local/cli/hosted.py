"""`serve` on a terminal: the server in a process of its own, the UI in this one.

The UI is a client like any other, so it costs the server's loop nothing, and llama.cpp's own output goes to
the log instead of over the screen. The server ends with this process unless it is told to go on: it watches
its end of a pipe.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from astraea_local.cli.shared import err, fail
from astraea_local.cli.top import watch_server
from astraea_local.profile import Profile

_LEAVE = b"leave\n"
_KILL_AFTER_S = 60.0
_LAST_WORDS = 5


def has_terminal() -> bool:
    """Whether there is a terminal to draw on, and somebody who types."""
    return os.isatty(0) and os.isatty(1) and os.isatty(2)


def serve_with_ui(profile: Profile, arguments: Sequence[str], api_key: str | None = None) -> None:
    """Starts `serve` again without a UI, shows it, and ends or leaves it as its user says.

    `arguments` are those of this command, `serve` first.
    """
    host = profile.server.host
    port = profile.server.port or _free_port(host)
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    certificate = Path(profile.server.tls_cert) if profile.server.tls_cert else None
    scheme = "http" if certificate is None else "https"
    url = f"{scheme}://{f'[{address}]' if ':' in address else address}:{port}"
    child = ServerChild([*arguments, "--port", str(port)], _log_file(port))
    try:
        answer = watch_server(url, api_key, host=child, certificate=certificate)
    except BaseException:
        child.stop()
        raise
    if answer == "leave" and child.leave():
        err.print(f"the server goes on at {url}; its log is {child.log}", soft_wrap=True)
        key = "" if api_key is None else " and an API key in ASTRAEA_API_KEY"
        see = f"see it with `astraea-local top {url}`{key}"
        err.print(f"{see}, stop it with `kill -INT {child.pid}`", soft_wrap=True)
        return
    if answer == "ended":
        code = child.stop()
        fail(child.ended() or "the server ended", code=max(1, code))
    err.print("stopping: running calls end first, Ctrl-C cuts them short")
    if child.stop() not in (0, -signal.SIGINT):
        fail(f"the server did not end well; its log is {child.log}", code=1)
    err.print("stopped")


class ServerChild:
    """The server's process, and its log."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        """Starts it; everything it prints goes to `log`."""
        self.log = log
        command = [sys.executable, "-m", "astraea_local", *arguments, "--no-tui", "--with-parent"]
        with log.open("wb") as out:
            # A session of its own: Ctrl-C and a closed terminal are this process's to answer.
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
            )
        self.pid = self._process.pid
        self._reader = log.open("rb")
        self._rest = b""

    def lines(self) -> list[str]:
        """What it has printed since the last call, complete lines only."""
        *lines, self._rest = (self._rest + self._reader.read()).split(b"\n")
        return [text for line in lines if (text := line.decode("utf-8", "replace").strip())]

    def ended(self) -> str | None:
        """Its last words when it has ended, else None."""
        if self._process.poll() is None:
            return None
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        named = [line for line in lines if line.startswith("astraea-local: ")]
        words = named[-1].removeprefix("astraea-local: ") if named else " / ".join(lines[-_LAST_WORDS:])
        return words or f"the server ended with exit code {self._process.returncode}"

    def leave(self) -> bool:
        """Lets it live on when this process ends; False when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_LEAVE)
            self._process.stdin.close()
        except OSError:
            return False
        return self._process.poll() is None

    def stop(self) -> int:
        """Asks it to end, waits for that, and returns its exit code; Ctrl-C meanwhile asks again."""
        impatience = 0
        self._signal(signal.SIGINT)
        while True:
            try:
                return self._process.wait(_KILL_AFTER_S)
            except KeyboardInterrupt:
                impatience += 1
                self._signal(signal.SIGINT if impatience == 1 else signal.SIGKILL)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # To all of its session: a killed server must not leave an engine behind.
                (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)


def end_with_parent() -> None:
    """In the server: stops it when the process that started it is gone without having let it go."""

    def watch() -> None:
        # Not through sys.stdin: Python cannot end while a thread holds its lock.
        if os.read(0, len(_LEAVE)) != _LEAVE:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
            return int(sock.getsockname()[1])
    except OSError as error:
        fail(f"cannot listen on {host}: {error.strerror}")


def _log_file(port: int) -> Path:
    folder = platformdirs.user_log_path("astraea-local", appauthor=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / f"serve-{port}.log"
        file.touch(mode=0o600)
        file.open("ab").close()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="astraea-")) / "serve.log"
    return file
