"""Which job a request belongs to, without any change in the client.

A name that the client sends decides (`names.py`); else the longest token prefix that some known job's
conversation shares with the prompt; else it is a new job. Jobs of different API keys never meet.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from astraea_local.api.hygiene import Loss, Outline, Turn, find_loss
from astraea_local.api.names import claim
from astraea_local.engine.binding import Tokens
from astraea_local.engine.slots import common_prefix

_MAX_JOBS = 1024
_MAX_ANSWERS = 4096
# Of all jobs together: 64 MiB.
_MAX_TOKENS = 16 << 20
# A client asks other things between the turns of its conversation: a title, a summary.
_MAX_TURNS = 3


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
    loss: Loss | None = None
    """What the prompt does not repeat of what is known of the job."""


@dataclass(slots=True)
class _Known:
    tenant: str
    first_seen: float
    last_seen: float
    busy: int = 0
    turns: list[Turn] = field(default_factory=list)
    """Its latest conversations, the newest last."""


class JobBook:
    """Remembers the conversation of each job, to recognize its next request."""

    def __init__(
        self,
        *,
        generation_prompt_tokens: int,
        idle_s: float,
        decode: Callable[[Tokens], str] = lambda _tokens: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`generation_prompt_tokens` is what the chat template appends to make the model answer.

        `decode` gives the text of tokens, to tell whether thinking was dropped.
        """
        self._slack = generation_prompt_tokens
        self._idle_s = idle_s
        self._decode = decode
        self._clock = clock
        self._jobs: dict[str, _Known] = {}
        self._answers: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._numbers = itertools.count(1)

    def identify(
        self,
        headers: Mapping[str, str],
        fields: Mapping[str, Any],
        prompt: Tokens,
        *,
        tenant: str = "",
        outline: Outline | None = None,
    ) -> Identity:
        """The job of a request, which counts as running until `finish`. Raises `ApiError` on bad headers.

        `fields` are the body's, as far as `names.FIELDS` has them; `tenant` names the API key.
        """
        # Read first: a refused request must not leave its job running for ever.
        said = claim(headers, fields, lambda answer: self._answers.get((tenant, answer)))
        job, source = None if said.shared else said.job, said.source
        if job is None:
            job, source = self._by_prefix(prompt, tenant), "same conversation"
        if job is None and said.shared and said.job is not None and not self._is_busy(tenant, said.job):
            job, source = said.job, said.source
        if job is None:
            job, source = f"job-{next(self._numbers)}", "new conversation"
        job = _of_tenant(tenant, job)
        now = self._clock()
        known = self._jobs.setdefault(job, _Known(tenant, now, now))
        known.busy += 1
        known.last_seen = now
        loss = find_loss(known.turns, prompt, outline, self._decode)
        self._forget(now)
        parent = None if said.parent is None else _of_tenant(tenant, said.parent)
        return Identity(job, source, parent, said.priority, said.final, loss)

    def finish(
        self, job: str, prompt: Tokens, output: tuple[int, ...] | None, outline: Outline | None = None
    ) -> None:
        """Ends a request; with `output` (None = it failed) its conversation becomes the job's.

        `outline` is that of the chat; None means a plain prompt, which has no generation prompt.
        """
        known = self._jobs.get(job)
        if known is None:
            return
        # Not below zero: `end` may have forgotten the job, and a later request may have brought it back.
        known.busy = max(0, known.busy - 1)
        known.last_seen = self._clock()
        if output is not None:
            context = np.concatenate([prompt, np.array(output, dtype=np.int32)])
            slack = 0 if outline is None else self._slack
            _keep(known.turns, Turn(context, len(prompt), slack, outline))

    def remember(self, identity: Identity, answer: str) -> None:
        """Makes a response id lead to its job, for clients that name the response they go on from."""
        known = self._jobs.get(identity.job)
        if known is not None:
            job = identity.job.removeprefix(_of_tenant(known.tenant, ""))
            self._answers[known.tenant, answer] = job
            while len(self._answers) > _MAX_ANSWERS:
                self._answers.popitem(last=False)

    def completion_time(self, job: str) -> float | None:
        """Seconds from the job's first request to the end of its last one."""
        known = self._jobs.get(job)
        return None if known is None else known.last_seen - known.first_seen

    def end(self, job: str) -> None:
        """Forgets a job that said it is over."""
        self._jobs.pop(job, None)

    def _is_busy(self, tenant: str, job: str) -> bool:
        known = self._jobs.get(_of_tenant(tenant, job))
        return known is not None and known.busy > 0

    def _by_prefix(self, prompt: Tokens, tenant: str) -> str | None:
        """The idle job whose whole last prompt this one repeats; the longest match wins, then the latest.

        The old prompt's end, where the template asked for an answer, may differ.
        """
        best: tuple[int, float, str] | None = None
        for job, known in self._jobs.items():
            if known.busy or known.tenant != tenant:
                continue
            for turn in known.turns:
                stable = turn.prompt_tokens - turn.slack
                if stable <= 0 or len(prompt) <= turn.prompt_tokens:
                    continue
                # One token tells most of them apart, which all together would take long to compare.
                if turn.context[stable - 1] != prompt[stable - 1]:
                    continue
                shared = common_prefix(turn.context, prompt)
                if shared >= stable:
                    best = max(best or (0, 0.0, ""), (shared, known.last_seen, job))
        return None if best is None else best[2].removeprefix(_of_tenant(tenant, ""))

    def _forget(self, now: float) -> None:
        idle = sorted((k.last_seen, job) for job, k in self._jobs.items() if not k.busy)
        too_many = len(self._jobs) - _MAX_JOBS
        tokens = sum(len(t.context) for k in self._jobs.values() for t in k.turns)
        for index, (seen, job) in enumerate(idle):
            if index < too_many or tokens > _MAX_TOKENS or now - seen > self._idle_s:
                tokens -= sum(len(t.context) for t in self._jobs.pop(job).turns)


def _of_tenant(tenant: str, job: str) -> str:
    return f"{tenant}/{job}" if tenant else job


def _keep(turns: list[Turn], new: Turn) -> None:
    """Puts a turn in the place of the one that it goes on from, else beside the others."""
    for index, turn in enumerate(turns):
        if 2 * common_prefix(turn.context, new.context) >= turn.prompt_tokens:
            del turns[index]
            break
    turns.append(new)
    del turns[:-_MAX_TURNS]
