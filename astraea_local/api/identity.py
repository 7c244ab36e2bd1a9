"""Which job a request belongs to, without any change in the client.

Explicit headers first, then session headers, then fields of the body, then the longest token prefix
that some known job's conversation shares with the prompt; else it is a new job.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from astraea_local.api.errors import ApiError
from astraea_local.api.schemas import ChatRequest, Generation
from astraea_local.engine.binding import Tokens
from astraea_local.engine.slots import common_prefix

_MAX_JOBS = 1024
_MAX_NAME = 128
_METADATA_KEYS = ("job_id", "session_id", "conversation_id", "thread_id")


@dataclass(frozen=True, slots=True)
class Identity:
    """The job of one request."""

    job: str
    source: str
    """How it was recognized, for people."""
    parent: str | None = None
    priority: int | None = None
    final: bool = False
    """No further request of this job will come."""


@dataclass(slots=True)
class _Known:
    context: Tokens
    """Prompt and output of the job's last request."""
    prompt_tokens: int
    slack: int
    """Of those, tokens at the end that its next prompt may render differently."""
    busy: int
    first_seen: float
    last_seen: float


class JobBook:
    """Remembers the conversation of each job, to recognize its next request."""

    def __init__(
        self, *, generation_prompt_tokens: int, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`generation_prompt_tokens` is what the chat template appends to make the model answer."""
        self._slack = generation_prompt_tokens
        self._idle_s = idle_s
        self._clock = clock
        self._jobs: dict[str, _Known] = {}
        self._numbers = itertools.count(1)

    def identify(self, headers: Mapping[str, str], body: Generation, prompt: Tokens) -> Identity:
        """The job of a request, which counts as running until `finish`. Raises `ApiError` on bad headers."""
        # Checked first: a refused request must not leave its job running for ever.
        priority = _priority(headers.get("x-astraea-priority"))
        job, source = _named(headers, body)
        if job is None:
            job = self._by_prefix(prompt)
            source = "same conversation"
        if job is None:
            job = f"job-{next(self._numbers)}"
            source = "new conversation"
        now = self._clock()
        known = self._jobs.setdefault(job, _Known(prompt[:0], 0, 0, 0, now, now))
        known.busy += 1
        known.slack = self._slack if isinstance(body, ChatRequest) else 0
        known.last_seen = now
        self._forget(now)
        return Identity(
            job,
            source,
            parent=_clean(headers.get("x-astraea-parent")),
            priority=priority,
            final=headers.get("x-astraea-final", "").lower() in ("1", "true", "yes"),
        )

    def finish(self, job: str, prompt: Tokens, output: tuple[int, ...] | None) -> None:
        """Ends a request; with `output` (None = it failed) its conversation becomes the job's."""
        known = self._jobs.get(job)
        if known is None:
            return
        # Not below zero: `end` may have forgotten the job, and a later request may have brought it back.
        known.busy = max(0, known.busy - 1)
        known.last_seen = self._clock()
        if output is not None:
            known.context = np.concatenate([prompt, np.array(output, dtype=np.int32)])
            known.prompt_tokens = len(prompt)

    def completion_time(self, job: str) -> float | None:
        """Seconds from the job's first request to the end of its last one."""
        known = self._jobs.get(job)
        return None if known is None else known.last_seen - known.first_seen

    def end(self, job: str) -> None:
        """Forgets a job that said it is over."""
        self._jobs.pop(job, None)

    def _by_prefix(self, prompt: Tokens) -> str | None:
        """The idle job whose whole last prompt this one repeats; the longest match wins, then the latest.

        The old prompt's end, where the template asked for an answer, may differ.
        """
        best: tuple[int, float, str] | None = None
        for job, known in self._jobs.items():
            stable = known.prompt_tokens - known.slack
            if known.busy or stable <= 0 or len(prompt) <= known.prompt_tokens:
                continue
            shared = common_prefix(known.context, prompt)
            if shared >= stable:
                best = max(best or (0, 0.0, ""), (shared, known.last_seen, job))
        return None if best is None else best[2]

    def _forget(self, now: float) -> None:
        idle = sorted((k.last_seen, job) for job, k in self._jobs.items() if not k.busy)
        too_many = len(self._jobs) - _MAX_JOBS
        for index, (seen, job) in enumerate(idle):
            if index < too_many or now - seen > self._idle_s:
                del self._jobs[job]


def _named(headers: Mapping[str, str], body: Generation) -> tuple[str | None, str]:
    job, agent = _clean(headers.get("x-astraea-job")), _clean(headers.get("x-astraea-agent"))
    if job or agent:
        return "/".join(filter(None, (job, agent))), "X-Astraea headers"
    if session := _clean(headers.get("x-session-id")):
        return session, "X-Session-Id"
    if key := _clean(body.prompt_cache_key):
        return key, "prompt_cache_key"
    for name in _METADATA_KEYS:
        value = (body.metadata or {}).get(name)
        if isinstance(value, str) and (value := _clean(value)):
            return value, f"metadata.{name}"
    return None, ""


def _clean(name: str | None) -> str | None:
    """A name fit to be shown: printable and short."""
    if name is None:
        return None
    return "".join(c for c in name if c.isprintable())[:_MAX_NAME].strip() or None


def _priority(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        number = int(value)
    except ValueError:
        number = 99
    if not -9 <= number <= 9:
        raise ApiError(
            400, f"X-Astraea-Priority: {value!r} is not a number from -9 to 9", param="X-Astraea-Priority"
        )
    return number
