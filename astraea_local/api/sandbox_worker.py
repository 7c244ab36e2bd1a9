"""The process in which a model's chat template runs: nothing but Jinja, little memory, little time.

Started by `sandbox.py`, which see. It imports nothing else of the package, so that it starts fast. Messages
are lines of JSON: first the template's source, then one context for each rendering.
"""

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
MAX_CHARS = 32 << 20


def main(time_s: float) -> None:
    """Renders until the other end is closed; a rendering that takes longer ends the process by SIGPROF."""
    # macOS has the limit, but does not hold it.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    clock = _Clock()
    source = json.loads(sys.stdin.readline())
    _limit(time_s)
    try:
        template = _environment(clock).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        _answer({"syntax": f"line {error.lineno}: {error.message}"})
        return
    except (RecursionError, MemoryError, ValueError, SyntaxError) as error:
        _answer({"syntax": f"{type(error).__name__}: {error}"})
        return
    _answer({})
    for line in sys.stdin:
        request = json.loads(line)
        clock.now = datetime.fromisoformat(request["now"])
        _limit(time_s)
        _answer(_render(template, request["context"]))


class _Clock:
    now: datetime


class _Environment(ImmutableSandboxedEnvironment):
    """Nothing of the input can be changed, but lists may be: some templates collect in lists of their own."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, list) and attr in ("append", "pop"):
            return True
        return super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what is to be trained on; here its content is all."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(clock: _Clock) -> jinja2.Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: clock.now.strftime(form)
    return environment


def _render(template: jinja2.Template, context: dict[str, Any]) -> dict[str, str]:
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(context):
            size += len(piece)
            if size > MAX_CHARS:
                return {"failed": f"it writes more than {MAX_CHARS:,} characters"}
            pieces.append(piece)
    except jinja2.TemplateError as error:
        return {"refused": error.message or type(error).__name__}
    except MemoryError:
        return {"failed": "it needs too much memory"}
    except Exception as error:
        return {"failed": str(error) or type(error).__name__}
    return {"text": "".join(pieces)}


def _limit(time_s: float) -> None:
    # Whatever runs then, in Python or in C, is ended by the signal's default action.
    signal.setitimer(signal.ITIMER_PROF, time_s)


def _answer(message: dict[str, str]) -> None:
    _limit(0)
    # ASCII only: half of a surrogate pair, which a client may send, has no other encoding.
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: Any) -> list[Any]:
    """What filters such as `map` return."""
    if isinstance(value, GeneratorType | map | filter):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main(float(sys.argv[1]))
