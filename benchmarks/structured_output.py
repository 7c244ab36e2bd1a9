"""llama.cpp's GBNF sampler against llguidance: JSON by schema, on the corpus of the tests.

    python -m benchmarks.structured_output --out structured.json

Each schema is given to both; SmolLM2 answers greedily, alone in the engine. Prints how many schemas each
takes, whether the outputs validate, and how fast tokens come; the third line is without a constraint.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from llama_cpp import llama_grammar

from astraea_local.api.constraints import SchemaFault, schema_grammar
from astraea_local.engine.binding import Grammar, Model
from astraea_local.engine.core import EngineCore
from astraea_local.engine.messages import Failed, Finished, Submit
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.worker import new_context
from astraea_local.model_source import resolve
from astraea_local.profile import Profile, override
from tests.api.schema_corpus import REFUSED, SCHEMAS

_PROMPT = "<|im_start|>user\nAnswer in JSON, briefly.<|im_end|>\n<|im_start|>assistant\n"
_MOST = 200


@dataclass(frozen=True, slots=True)
class Result:
    """One schema with one constraint."""

    schema: str
    engine: str
    refused: str = ""
    tokens: int = 0
    seconds: float = 0.0
    """From the first token to the last."""
    first_s: float = 0.0
    """From the request to the first token: prefill, and compiling the grammar."""
    complete: bool = False
    valid: bool = False


def gbnf(schema: Any) -> SamplingParams:
    """The converter that comes with llama-cpp-python, as this project used it before."""
    return SamplingParams(temperature=0, grammar=llama_grammar.json_schema_to_gbnf(json.dumps(schema)))


def guidance(schema: Any) -> SamplingParams:
    """What the server does."""
    return SamplingParams(temperature=0, guidance=f"start: %json {schema_grammar(schema)}\n")


def free(_schema: Any) -> SamplingParams:
    """No constraint: what the model does alone."""
    return SamplingParams(temperature=0)


ENGINES: dict[str, Callable[[Any], SamplingParams]] = {"gbnf": gbnf, "llguidance": guidance, "none": free}


class Bench:
    """One model, asked again and again."""

    def __init__(self) -> None:
        profile = override(Profile(), {"context.size": 2048, "context.slots": 1, "model.gpu_layers": 0})
        self._model = Model(resolve("demo"))
        self._core = EngineCore(self._model, new_context(self._model, profile), profile)
        self._core.guides.warm_up()
        tokens = self._model.vocab.tokenize(_PROMPT, add_special=True, parse_special=True)
        self._prompt = np.asarray(tokens, dtype=np.int32)
        self._count = 0

    def run(self, name: str, engine: str, schema: Any) -> Result:
        """One answer."""
        try:
            params = ENGINES[engine](schema)
            if params.grammar is not None:
                Grammar(self._model.vocab, params.grammar).close()
        except SchemaFault as fault:
            return Result(name, engine, refused=str(fault))
        except Exception as error:  # the converter raises whatever it meets
            return Result(name, engine, refused=repr(error)[:200])
        self._count += 1
        began = time.perf_counter()
        # Without a constraint the model would end after a few tokens.
        is_free = engine == "none"
        most = 40 if is_free else _MOST
        self._core.submit(
            Submit(self._count, "job", self._prompt, most, params, ignore_eos=is_free, stream=False)
        )
        finished = self._finish()
        total = time.perf_counter() - began
        return Result(
            name,
            engine,
            tokens=finished.output_tokens,
            seconds=finished.decode_s,
            first_s=total - finished.decode_s,
            complete=finished.reason == "stop",
            valid=engine != "none" and _is_valid(finished.text, schema),
        )

    def _finish(self) -> Finished:
        while True:
            self._core.step()
            for message in self._core.take_messages():
                if isinstance(message, Failed):
                    raise RuntimeError(message.message)
                if isinstance(message, Finished):
                    return message


def _is_valid(text: str, schema: Any) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def report(results: list[Result], out: Callable[[str], None] = print) -> None:
    """Prints the figures of each engine."""
    taken = {e: {r.schema for r in results if r.engine == e and not r.refused} for e in ENGINES}
    both = taken["gbnf"] & taken["llguidance"]
    for engine in ENGINES:
        mine = [r for r in results if r.engine == engine and not r.refused]
        shared = [r for r in mine if (r.schema in both or engine == "none") and r.tokens > 1]
        speed = sum(r.tokens - 1 for r in shared) / sum(r.seconds for r in shared)
        complete = [r for r in mine if r.complete]
        first = [r.first_s for r in mine]
        out(
            f"{engine:11} takes {len(mine)} of {len(taken['none'])} schemas; "
            f"{sum(r.valid for r in complete)} of {len(complete)} complete answers valid; "
            f"{speed:.1f} tokens/s; first token after {1000 * statistics.median(first):.0f} ms "
            f"(median), {1000 * max(first):.0f} ms (most)"
        )
    for result in results:
        if result.engine == "none":
            continue
        if result.refused:
            out(f"  {result.engine} refuses {result.schema!r}: {result.refused[:120]}")
        elif not result.complete:
            out(f"  {result.engine} reached {_MOST} tokens on {result.schema!r}")
        elif not result.valid:
            out(f"  {result.engine} gave an answer that {result.schema!r} does not accept")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    out = parser.parse_args().out
    bench = Bench()
    bench.run("warm-up", "none", {})
    corpus = SCHEMAS | {name: schema for name, (schema, _) in REFUSED.items()}
    results = [bench.run(name, engine, schema) for name, schema in corpus.items() for engine in ENGINES]
    report(results)
    if out is not None:
        out.write_text(json.dumps([asdict(r) for r in results], indent=1))


if __name__ == "__main__":
    main()
