"""Where a job's new prompt stops repeating what is known of it, and what the client or template changed.

An agent sends its whole conversation again with each request. If an early part of it changed, everything
behind has to be prefilled again; mostly nobody meant to. Of a conversation only hashes of its parts are kept,
beside the tokens by which a job is recognized anyway.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from astraea_local.api.schemas import ChatRequest, Generation
from astraea_local.engine.binding import Tokens
from astraea_local.engine.slots import common_prefix

Cause = Literal["tools", "system", "message", "thinking", "answer", "rendering"]

# A few tokens at the end of an answer are often rendered differently, and cost nothing.
_WORTH_SAYING = 32
# How far around the first difference a thinking mark is looked for, in tokens.
_NEAR = 24
_THINKING = ("<think", "[THINK]", "<|channel|>analysis", "<reasoning", "<seed:think")


@dataclass(frozen=True, slots=True)
class Outline:
    """Hashes of what a prompt was rendered from; they mean something within this process only."""

    tools: int
    messages: tuple[tuple[int, int], ...]
    """For each message: of all but its reasoning, and of its reasoning."""
    system: int
    """How many messages at the beginning are instructions."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The tokens of a job's earlier request with their answer."""

    context: Tokens
    prompt_tokens: int
    slack: int
    """Of those, tokens at the end that the next prompt may render differently."""
    outline: Outline | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A prefix that could have been reused, and was not repeated."""

    cause: Cause
    at: int
    """Tokens that both have in common."""
    known: int
    """Tokens that were known."""
    text: str


def outline(body: Generation) -> Outline | None:
    """The outline of a conversation; None for a plain prompt."""
    if not isinstance(body, ChatRequest):
        return None
    messages = []
    for m in body.messages:
        calls = json.dumps(m.tool_calls, sort_keys=True) if m.tool_calls else ""
        messages.append(
            (hash((m.role, m.text, m.name, m.tool_call_id, calls)), hash(m.reasoning_content or ""))
        )
    roles = [m.role in ("system", "developer") for m in body.messages]
    system = roles.index(False) if False in roles else len(roles)
    return Outline(hash(json.dumps(body.tools, sort_keys=True)), tuple(messages), system)


def find_loss(
    turns: Sequence[Turn], prompt: Tokens, new: Outline | None, decode: Callable[[Tokens], str]
) -> Loss | None:
    """What a prompt lost of the earlier turn that it shares most with; None when it goes on from it."""
    shared, turn = max(
        ((common_prefix(t.context, prompt), t) for t in turns), key=lambda s: s[0], default=(0, None)
    )
    if turn is None or len(turn.context) - shared < _WORTH_SAYING:
        return None
    # A prompt that goes back to an earlier point repeats all that it can, but for asking for the answer.
    if shared >= len(prompt) - turn.slack:
        return None
    in_answer = shared >= turn.prompt_tokens - turn.slack
    cause, words = _changed(turn.outline, new)
    if cause is None:
        near = turn.context[max(0, shared - _NEAR) : shared + _NEAR]
        if any(mark in decode(near) for mark in _THINKING):
            cause, words = "thinking", "earlier thinking dropped"
        elif in_answer:
            cause, words = "answer", "the last answer came back changed"
        else:
            cause, words = "rendering", "the prompt changed" if new is None else "rendered differently"
    known = len(turn.context)
    return Loss(cause, shared, known, f"prefix lost at token {shared:,} of {known:,}: {words}")


def _changed(old: Outline | None, new: Outline | None) -> tuple[Cause | None, str]:
    """What differs between two conversations as far as both go; (None, "") when nothing does."""
    if old is None or new is None:
        return None, ""
    number = next(
        (i for i, (a, b) in enumerate(zip(old.messages, new.messages, strict=False)) if a != b), None
    )
    of_messages: tuple[Cause | None, str] = (None, "")
    if number is not None:
        before, after = old.messages[number], new.messages[number]
        if before[0] == after[0]:
            of_messages = "thinking", "earlier thinking dropped"
        elif number < max(old.system, new.system):
            of_messages = "system", "system message changed"
        else:
            of_messages = "message", f"message {number + 1} changed"
    if old.tools == new.tools:
        return of_messages
    return "tools", f"tools changed, {of_messages[1]}" if of_messages[0] else "tools changed"
