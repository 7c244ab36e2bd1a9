"""Speed of the engine by itself: against `llama_cpp.Llama`, and what Python adds to a step.

Both sides get the same model, threads and context in one process, in turns; medians are printed.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import llama_cpp
import numpy as np

from astraea_local.engine.binding import Context, Model, amx
from astraea_local.engine.core import EngineCore
from astraea_local.engine.messages import Cancel, Submit
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.worker import context_params
from astraea_local.model_source import resolve
from astraea_local.profile import Profile, override

_EXAMPLE = """example:
  python benchmarks/speed.py --repeats 7 --json speed.json
"""


class Ours:
    """The engine's core without processes and HTTP."""

    def __init__(self, model: Model, slots: int, threads: int, context: int) -> None:
        changes = {"context.size": context * slots, "context.slots": slots, "model.threads": threads}
        profile = override(Profile(), {**changes, "kv.layout": "per_slot", "scheduler.policy": "fcfs"})
        self.context = Context(model, context_params(profile, model.model_class, model.n_ctx_train))
        self.core = EngineCore(model, self.context, profile)
        self._next = 0

    def submit(self, prompt: list[int], count: int, sampling: SamplingParams) -> None:
        self._next += 1
        tokens = np.array(prompt, dtype=np.int32)
        self.core.submit(Submit(self._next, f"job{self._next}", tokens, count, sampling, ignore_eos=True))

    def single(self, prompt: list[int], count: int) -> tuple[float, float]:
        """(prefill, decode) in tokens per second of one segment."""
        self.clear()
        started = time.perf_counter()
        self.submit(prompt, count, SamplingParams(temperature=0))
        while self.core.totals.decoded_tokens % count == 0 and self.core.busy:
            self.core.step()
        first = time.perf_counter()
        while self.core.busy:
            self.core.step()
        return len(prompt) / (first - started), (count - 1) / (time.perf_counter() - first)

    def overhead(self, slots: int, steps: int, sampling: SamplingParams) -> dict[str, float]:
        """Milliseconds of a step of `slots` decoding segments, and where they go."""
        self.clear()
        for i in range(slots):
            self.submit(list(range(10 + i, 42 + i)), steps + 50, sampling)
        while self.core.totals.decoded_tokens < slots or any(not r.output for r in self.core.runs.values()):
            self.core.step()
        before = self.core.step_time
        start = (before.total, before.decode, before.sampling)
        for _ in range(steps):
            self.core.step()
            self.core.take_messages()
        after = self.core.step_time
        total, decode, sampled = (
            1000 * (b - a) / steps
            for a, b in zip(start, (after.total, after.decode, after.sampling), strict=True)
        )
        for run in list(self.core.runs.values()):
            self.core.cancel(Cancel(run.request.segment))
        return {
            "step_ms": total,
            "llama_decode_ms": decode,
            "sampling_ms": sampled,
            "rest_ms": total - decode - sampled,
        }

    def clear(self) -> None:
        """Forgets every context, so that nothing is taken from a cache."""
        for sequence in self.core.table:
            self.core.table.clear(sequence)
        for job, _part, _length in list(self.core.residency.store.tree.jobs()):
            self.core.residency.store.drop_job(job)
        self.core.totals.decoded_tokens = 0


def theirs(llama: llama_cpp.Llama, prompt: list[int], count: int) -> tuple[float, float]:
    """(prefill, decode) in tokens per second of `Llama.generate`."""
    llama.reset()
    started = time.perf_counter()
    first = started
    for index, _token in enumerate(llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)):
        if index == 0:
            first = time.perf_counter()
        if index == count - 1:
            break
    return len(prompt) / (first - started), (count - 1) / (time.perf_counter() - first)


def _peer(path: str, **settings: Any) -> llama_cpp.Llama:
    """It has no switch for what the engine turns off where it would end the process."""
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = not amx.must_be_off()
    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", return_value=params):
        return llama_cpp.Llama(path, **settings)


def compare(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved runs and of the ratio in each pair."""
    ours = Ours(model, 1, arguments.threads, 2048)
    llama = _peer(
        str(model.path),
        n_ctx=2048,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        flash_attn=True,
        verbose=False,
    )
    rng = np.random.default_rng(0)
    pairs = []
    for repeat in range(arguments.repeats + 1):
        prompt = rng.integers(10, 40000, arguments.prompt).tolist()
        pair = (ours.single(prompt, arguments.tokens), theirs(llama, prompt, arguments.tokens))
        if repeat:  # the first round warms both up
            pairs.append(pair)
    llama.close()
    return {
        name: {
            "ours": statistics.median(p[0][i] for p in pairs),
            "llama_cpp.Llama": statistics.median(p[1][i] for p in pairs),
            "ratio": statistics.median(p[0][i] / p[1][i] for p in pairs),
        }
        for i, name in enumerate(("prefill_tokens_s", "decode_tokens_s"))
    }


def main() -> int:
    """Prints a table, and JSON with `--json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="demo or a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens (default: 512)")
    parser.add_argument("--tokens", type=int, default=96, help="output tokens (default: 96)")
    parser.add_argument("--slots", type=int, default=8, help="running slots for the overhead (default: 8)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    with Model(resolve(arguments.model)) as model:
        found: dict[str, Any] = {"single_stream": compare(model, arguments)}
        ours = Ours(model, arguments.slots, arguments.threads, 512)
        for name, sampling in (
            ("greedy", SamplingParams(temperature=0)),
            ("default_sampling", SamplingParams(seed=1)),
        ):
            rounds = [ours.overhead(arguments.slots, 100, sampling) for _ in range(arguments.repeats)]
            found[f"step_of_{arguments.slots}_{name}"] = {
                key: statistics.median(r[key] for r in rounds) for key in rounds[0]
            }
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            shown = {k: round(v, 3) for k, v in value.items()} if isinstance(value, dict) else round(value, 3)
            print(f"  {key}: {shown}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
