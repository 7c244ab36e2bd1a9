"""astraea-local and llama-server under the same coding agents, on the same model, one after the other.

example:
  python benchmarks/side_by_side.py --llama-server ~/llama.cpp/build/bin/llama-server --repeats 3

Both get the same model, slots, context and threads, and every repeat gives both the same agents. They
take turns (A B A B) and never run at the same time, so that a machine that slows down slows both.
"""

import argparse
import asyncio
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from astraea_local.bench.coding import workload
from astraea_local.bench.replay import ReplayError, complete, open_client, run
from astraea_local.model_source import ModelSourceError, resolve

_START_S = 300.0
_STOP_S = 60.0

# What llama-server does with KV: its own slots' streams or one pool, with or without copies in host memory.
LLAMA_VARIANTS = {
    "per-slot": ["--no-kv-unified", "--cache-ram", "8192"],
    "unified": ["--kv-unified", "--cache-ram", "8192"],
    "no-ram-cache": ["--no-kv-unified", "--cache-ram", "0"],
}


class ServerError(Exception):
    """A server that did not start; the message ends in its last output."""


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: Sequence[str], port: int) -> Iterator[str]:
    """Runs `command` until the block ends and yields its base URL once `/health` says 200.

    Its cache folder is empty: KV states that an earlier run left there would make it look better. The
    server is interrupted as Ctrl-C would, and killed when it has not ended after a minute. Raises
    `ServerError` when it ends, or says nothing for five minutes, before it is healthy.
    """
    root = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cache:
        # A session of its own: Ctrl-C in this terminal must not reach it twice.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "XDG_CACHE_HOME": cache},
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + _START_S
            while not _healthy(root):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    output = log.read().decode("utf-8", "replace")[-2000:]
                    raise ServerError(f"{shlex.join(command)} did not become healthy:\n{output}")
                time.sleep(0.1)
            yield f"{root}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                sys.stderr.write(f"{command[0]} did not stop when interrupted and was killed\n")
                process.kill()
                process.wait()


def astraea_command(model: Path, port: int, args: argparse.Namespace) -> list[str]:
    """The command line of our server."""
    sizes = ["--ctx", str(args.ctx), "--slots", str(args.slots), "--threads", str(args.threads)]
    chosen = ["--profile", args.profile] if args.profile else []
    return [
        *(sys.executable, "-m", "astraea_local", "serve", "--model", str(model), "--port", str(port)),
        *(*sizes, "--policy", args.policy, "--no-tui", *chosen, *shlex.split(args.serve_args)),
    ]


def llama_command(model: Path, port: int, args: argparse.Namespace) -> list[str]:
    """The command line of llama-server, in the variant that `args` names."""
    threads = str(args.threads)
    return [
        *(str(args.llama_server), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(args.slots), "--ctx-size", str(args.ctx), *LLAMA_VARIANTS[args.llama_variant]),
        *("--threads", threads, "--threads-batch", threads, "--no-ui", *shlex.split(args.llama_args)),
    ]


def measure(command: Sequence[str], port: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One replay against a fresh server: `Result.to_json()`. Raises `ServerError`, `ReplayError`."""
    agents = workload(seed, agents=args.agents, rate=args.rate, context_limit=args.context_limit)
    with server(command, port) as url:
        asyncio.run(_warm_up(url))
        return asyncio.run(run(url, agents, headers=args.headers)).to_json()


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per run, the medians, and A / B of each pair."""
    lines = [
        "| seed | server | mean JCT s | p50 s | p95 s | TTFT after tools s | cached | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(str(entry["seed"]), entry["server"], entry["summary"]) for entry in runs]
    for name in ("astraea-local", "llama-server"):
        summaries = [entry["summary"] for entry in runs if entry["server"] == name]
        if summaries:
            lines.append(_row("median", name, {key: _median(summaries, key) for key in summaries[0]}))
    pairs = ratios(runs)
    listed = ", ".join(f"{ratio:.3f}" for ratio in pairs) or "none"
    middle = f", median {statistics.median(pairs):.3f}" if pairs else ""
    short = sum(entry["summary"]["short_replies"] for entry in runs)
    warning = f"\n\n{short} replies were shorter than drawn: the runs are not comparable." if short else ""
    return "\n".join(lines) + f"\n\nmean JCT, astraea-local / llama-server: {listed}{middle}{warning}"


def ratios(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Mean JCT of ours over theirs, seed by seed; pairs in which an agent failed are left out."""
    by_seed: dict[int, dict[str, float]] = {}
    for entry in runs:
        if not entry["summary"]["errors"]:
            by_seed.setdefault(entry["seed"], {})[entry["server"]] = entry["summary"]["mean_jct_s"]
    return [pair["astraea-local"] / pair["llama-server"] for pair in by_seed.values() if len(pair) == 2]


def _healthy(root: str) -> bool:
    try:
        return httpx.get(f"{root}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


async def _warm_up(url: str) -> None:
    """Touches all weights once, so that the first agent does not pay for reading the file."""
    async with open_client(url) as client:
        await complete(client, [{"role": "user", "content": "warm up"}], 4)


def _median(summaries: Sequence[dict[str, Any]], key: str) -> float | None:
    known = [summary[key] for summary in summaries if summary[key] is not None]
    return statistics.median(known) if known else None


def _row(seed: str, name: str, summary: dict[str, Any]) -> str:
    def shown(key: str, digits: int = 1) -> str:
        return "-" if summary[key] is None else f"{summary[key]:.{digits}f}"

    cells = [shown("mean_jct_s"), shown("p50_jct_s"), shown("p95_jct_s"), shown("mean_ttft_after_tool_s", 2)]
    return f"| {seed} | {name} | {' | '.join(cells)} | {shown('cached_share', 3)} | {shown('errors', 0)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--llama-server", type=Path, required=True, metavar="PATH", help="the llama-server program")
    add("--llama-variant", choices=tuple(LLAMA_VARIANTS), default="per-slot", help="default: %(default)s")
    add("--llama-args", default="", metavar="ARGS", help="more arguments for llama-server, in one string")
    add("--model", default="demo", help="demo, a GGUF file or hf:OWNER/REPO[:QUANT] (default: %(default)s)")
    add("--policy", default="astraea", help="policy of astraea-local (default: %(default)s)")
    add("--profile", help="profile of astraea-local")
    add("--serve-args", default="", metavar="ARGS", help="more arguments for astraea-local serve")
    add("--slots", type=int, default=4, help="default: %(default)s")
    add("--ctx", type=int, default=8192, help="KV cells in total (default: %(default)s)")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--agents", type=int, default=12, help="default: %(default)s")
    add("--rate", type=float, default=0.25, help="arrivals per second (default: %(default)s)")
    add("--context-limit", type=int, default=2000, help="tokens of an agent (default: %(default)s)")
    add("--headers", choices=("none", "session"), default="none", help="send X-Session-Id or not")
    add("--seed", type=int, default=1, help="of the first repeat, then one more each (default: %(default)s)")
    add("--repeats", type=int, default=3, help="pairs of runs (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every call's figures there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, or 1 when a server did not start or an agent failed.

    What was measured before a server failed is printed all the same.
    """
    args = _parser().parse_args(argv)
    runs: list[dict[str, Any]] = []
    failed = False
    try:
        model = resolve(args.model)
        for seed in range(args.seed, args.seed + args.repeats):
            for name, build in (("astraea-local", astraea_command), ("llama-server", llama_command)):
                port = free_port()
                command = build(model, port, args)
                sys.stderr.write(f"seed {seed}: {shlex.join(command)}\n")
                measured = measure(command, port, seed, args)
                runs.append({"seed": seed, "server": name, "command": command, **measured})
    except (ModelSourceError, ServerError, ReplayError, OSError) as error:
        sys.stderr.write(f"side_by_side: {error}\n")
        failed = True
    if runs:
        print(table(runs))
    if args.json is not None:
        args.json.write_text(json.dumps({"runs": runs, "ratios": ratios(runs)}, indent=1), encoding="utf-8")
    return 1 if failed or any(entry["summary"]["errors"] for entry in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
