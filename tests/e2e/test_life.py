"""Start, stop, and what is left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from astraea_local.engine.libc import VARIABLE
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e


def _children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def _alive(process: psutil.Process) -> bool:
    # An orphan that ended stays a zombie where nobody reaps it, as in many containers.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind(
    start_server: StartServer, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit code 0, no child, no temporary file, and the running request was allowed to end."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start_server()
    children = _children(server)
    assert children
    assert VARIABLE in psutil.Process(server.engine_pid()).environ()
    ends: list[str | None] = []

    def ask() -> None:
        client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Count to a hundred."}],
            max_tokens=120,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        ends.extend(chunk.choices[0].finish_reason for chunk in stream)
        client.close()

    thread = threading.Thread(target=ask)
    thread.start()
    server.wait_until(lambda: len(ends) > 3)
    assert server.stop(number) == 0
    thread.join(10)
    assert ends[-1] == "length", "the stream was cut although there was time to finish it"
    _gone, left = psutil.wait_procs(children, timeout=5)
    assert not left
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_wait(start_server: StartServer) -> None:
    """Impatience cancels what is running; the client gets an error it may retry."""
    server = start_server()
    failures: list[Exception] = []

    def ask() -> None:
        client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        try:
            client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": "Write a very long story."}],
                max_tokens=1900,
                extra_body={"ignore_eos": True},
            )
        except openai.APIError as error:
            failures.append(error)
        client.close()

    thread = threading.Thread(target=ask)
    thread.start()
    server.wait_until(
        lambda: any(
            slot["phase"] == "decode" for slot in httpx.get(f"{server.url}/astraea/v1/state").json()["slots"]
        )
    )
    server.process.send_signal(signal.SIGINT)
    server.wait_until(lambda: not server.healthy())
    assert server.stop() == 0
    thread.join(10)
    assert isinstance(failures[0], openai.APIStatusError)
    assert failures[0].status_code == 503


def test_the_engine_ends_when_the_front_is_killed(start_server: StartServer) -> None:
    """`kill -9` of the front leaves no engine holding the GPU."""
    server = start_server()
    engine = psutil.Process(server.engine_pid())
    server.process.kill()
    server.process.wait()
    server.wait_until(lambda: not _alive(engine), 10, stopped=True)


def test_the_start_is_visible(demo_path: Path) -> None:
    """A server that is asked before its model is there says how far it is, and then serves."""
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "astraea_local",
                "serve",
                "--port",
                "0",
                "--no-tui",
                "--model",
                str(demo_path),
            ],
            stderr=subprocess.PIPE,
            stdout=out,
            env={**os.environ, "COLUMNS": "300"},
        )
        assert process.stderr is not None
        try:
            line = process.stderr.readline().decode()
            assert "SmolLM2-135M-Instruct.Q4_1" in line
            assert "4 slots" in line
            url = next(word for word in line.split() if word.startswith("http://"))
            url = url.removesuffix(":").removesuffix("/v1")
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
