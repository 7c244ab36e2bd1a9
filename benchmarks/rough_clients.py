"""10,000 malformed requests, slow clients, half-open connections and header floods against a real server.

    python benchmarks/rough_clients.py

Starts `astraea-local serve` with a random-weight model on the loopback, and prints what became of the bad
requests, how healthy ones fared meanwhile, and the memory before and after.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from astraea_local.bench import random_model, rough


def main() -> None:
    parser = argparse.ArgumentParser(description="Rough clients against a real server.")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--port", type=int, default=8199)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = random_model.write(Path(folder) / "tiny.gguf")
        profile = Path(folder) / "profile.toml"
        profile.write_text(
            f'[model]\nsource = "{model}"\ngpu_layers = 0\n[prediction]\nhistory = false\n'
            "[server]\nread_timeout_s = 5.0\nslow_reader_s = 5.0\n"
        )
        command = [sys.executable, "-m", "astraea_local", "serve", "--no-tui", "--profile", str(profile)]
        process = subprocess.Popen(
            [*command, "--port", str(arguments.port)], env={**os.environ, "XDG_STATE_HOME": folder}
        )
        try:
            _wait(arguments.port)
            load = rough.Load(malformed=arguments.malformed)
            began = time.perf_counter()
            outcome = asyncio.run(rough.run("127.0.0.1", arguments.port, process.pid, load))
            _report(outcome, time.perf_counter() - began)
        finally:
            process.terminate()
            process.wait(30)


def _wait(port: int) -> None:
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


def _report(outcome: rough.Outcome, seconds: float) -> None:
    times = sorted(outcome.healthy_s)
    p50, worst = times[len(times) // 2], times[-1]
    print(f"bad requests in {seconds:.0f} s: {dict(sorted(outcome.statuses.items()))}")
    print(
        f"healthy requests meanwhile: {outcome.healthy} served, {outcome.healthy_failed} failed, "
        f"p50 {1000 * p50:.0f} ms, worst {1000 * worst:.0f} ms"
    )
    print(
        f"memory of the server: {outcome.memory_before:.0f} MiB before, {outcome.memory_most:.0f} at most, "
        f"{outcome.memory_after:.0f} after"
    )


if __name__ == "__main__":
    main()
