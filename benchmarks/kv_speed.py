"""What moving KV costs on this machine: copies, increments, resuming, and the stall of a stream beside it.

example:
  python benchmarks/kv_speed.py --tokens 2000 --repeats 7

Medians of one run, with the settings of the C library that the engine has. `copy` is a plain copy of as many
bytes between two buffers of its own, which were used before, but not since the last turn, so that like the KV
cache they are not in the processor's; above 1 is faster. The disk has its own benchmark, `disk_store.py`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from astraea_local.engine.binding import Batch, Context, ContextParams, Model
from astraea_local.engine.core import EngineCore
from astraea_local.engine.kv.arena import BufferArena, plain
from astraea_local.engine.kv.parts import PartTree, path
from astraea_local.engine.kv.transfer import Transfer
from astraea_local.engine.libc import VARIABLE, tunables
from astraea_local.engine.messages import Submit
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.worker import new_context
from astraea_local.model_source import resolve
from astraea_local.profile import load, override


def copies(model: Model, *, unified: bool, tokens: int, repeats: int, threads: int) -> dict[str, float]:
    """Saving, restoring, an increment and prefill of one context; seconds and bytes."""
    params = ContextParams(n_ctx=4 * 4096, n_seq=5 if unified else 4, unified=unified, threads=threads)
    figures: dict[str, list[float]] = {}
    with Context(model, params) as context, Batch(512) as batch:
        arena = BufferArena(1 << 31)
        transfer = Transfer(context, arena, by_rows=True, spare=4 if unified else None)
        text = np.random.default_rng(1).integers(100, 40_000, tokens + 200).astype(np.int32)
        started = time.perf_counter()
        _compute(context, batch, text[:tokens])
        figures["prefill_s"] = [time.perf_counter() - started]
        source, other = (plain(context.state_size(0)) for _ in range(2))
        source[:] = 1  # what was never written is one page of zeros
        for turn in range(repeats + 1):
            tree = PartTree()
            began = time.perf_counter()
            saved = transfer.save(0, 0, tokens)
            saving = time.perf_counter() - began
            assert saved is not None
            part = tree.add(None, 0, text[:tokens], saved.size, 0.0)
            part.buffer, part.offset = saved.buffer, saved.offset
            began = time.perf_counter()
            other[: saved.size] = source[: saved.size]
            copying = time.perf_counter() - began
            context.seq_rm(1)
            began = time.perf_counter()
            assert transfer.load(1, path(part, tokens))
            loading = time.perf_counter() - began
            # The next copy goes into memory that was used before.
            arena.release(part.buffer)
            if turn:  # the first turn maps fresh memory
                for name, value in (("save_s", saving), ("copy_s", copying), ("restore_s", loading)):
                    figures.setdefault(name, []).append(value)
        size = part.size
        figures["bytes"] = [float(size)]
        _compute(context, batch, text[tokens:])
        second = transfer.save(0, tokens, tokens + 200)
        assert second is not None
        figures["second_bytes_per_new"] = [second.size / (200 * size / tokens)]
    return {name: statistics.median(values) for name, values in figures.items()}


def _compute(context: Context, batch: Batch, tokens: Any) -> None:
    while len(tokens):
        batch.clear()
        batch.add(tokens[:512], context.seq_end(0), 0, last_logits=True)
        assert context.decode(batch) == 0
        tokens = tokens[512:]


def stalls(model: Model, layout: str, threads: int, rounds: int) -> dict[str, float]:
    """How long moves held up a stream that decodes while other jobs come, park and return; milliseconds."""
    changes = {
        "kv.layout": layout,
        "context.size": 8192 if layout == "per_slot" else 4096,
        "context.slots": 2 if layout == "unified" else 4,
        "model.threads": threads,
        "scheduler.policy": "fcfs",
    }
    profile = override(load("smollm2-cpu"), changes)
    spent: list[float] = []
    rng = np.random.default_rng(2)
    with new_context(model, profile) as context:
        core = EngineCore(model, context, profile)
        greedy = SamplingParams(temperature=0)
        number = 0
        talks = [rng.integers(100, 40_000, 1500).astype(np.int32) for _ in range(6)]
        stream = np.arange(200, 264, dtype=np.int32)
        for turn in range(rounds):
            sys.stderr.write(f"\r{layout}: stalls, round {turn + 1} of {rounds} ")
            number += 1
            core.submit(Submit(number, "stream", stream, 60, greedy, ignore_eos=True))
            while not any(run.output for run in core.runs.values()):
                core.step()
            number += 1
            talk = talks[turn % len(talks)]
            core.submit(Submit(number, f"job-{turn % len(talks)}", talk, 2, greedy, ignore_eos=True))
            while core.busy:
                streaming = any(r.sequence is not None and r.output for r in core.runs.values())
                core.step()
                if streaming:
                    spent.append(core.stalled_s)
        moved = [1000 * s for s in spent if s > 1e-4]
        stats = core.residency.store.stats
        core.close()
    sys.stderr.write("\n")
    return {
        "steps": len(spent),
        "steps_with_moves": len(moved),
        "parks": stats.parks,
        "restores": stats.restores,
        "p99_ms": float(np.percentile([1000 * s for s in spent], 99)),
        "p99_of_moves_ms": float(np.percentile(moved, 99)) if moved else 0.0,
        "max_ms": max(moved, default=0.0),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--tokens", type=int, default=2000, help="of the context (default: %(default)s)")
    add("--repeats", type=int, default=7, help="default: %(default)s")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--rounds", type=int, default=20, help="of the stall measurement (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {}
    with Model(resolve("demo")) as model:
        for layout in ("per_slot", "unified"):
            sys.stderr.write(f"{layout}: copies\n")
            one = copies(
                model,
                unified=layout == "unified",
                tokens=args.tokens,
                repeats=args.repeats,
                threads=args.threads,
            )
            found[layout] = {**one, **stalls(model, layout, args.threads, args.rounds)}
    print("| | per_slot | unified |\n|---|---:|---:|")
    rows: dict[str, Callable[[dict[str, float]], str]] = {
        "state, MB": lambda f: f"{f['bytes'] / 1e6:.1f}",
        "save, ms (of a plain copy)": lambda f: f"{1e3 * f['save_s']:.1f} ({f['copy_s'] / f['save_s']:.2f})",
        "restore, ms (of a plain copy)": lambda f: (
            f"{1e3 * f['restore_s']:.1f} ({f['copy_s'] / f['restore_s']:.2f})"
        ),
        "prefill, s (times the restore)": lambda f: (
            f"{f['prefill_s']:.2f} ({f['prefill_s'] / f['restore_s']:.0f})"
        ),
        "second snapshot, bytes of its new tokens'": lambda f: f"{f['second_bytes_per_new']:.3f}",
        "stall in steps beside moves, p99 / max, ms": lambda f: (
            f"{f['p99_of_moves_ms']:.1f} / {f['max_ms']:.1f}"
        ),
        "parks / restores while a stream ran": lambda f: f"{f['parks']:.0f} / {f['restores']:.0f}",
    }
    for name, show in rows.items():
        print(f"| {name} | {show(found['per_slot'])} | {show(found['unified'])} |")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    if (wanted := tunables("")) not in os.environ.get(VARIABLE, ""):
        # glibc reads it only when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, VARIABLE: wanted})
    sys.exit(main())
