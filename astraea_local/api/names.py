"""What a request says about the agent behind it: names in headers and body fields, one table for all clients.

`docs/api.md` shows the table. Nothing here knows other requests: `identity.py` decides what a name leads to.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from astraea_local.api.errors import ApiError

# Body fields that are looked at; dialects hand over those that they have.
FIELDS = (
    "metadata",
    "previous_response_id",
    "prompt_cache_key",
    "conversation",
    "safety_identifier",
    "user",
    "service_tier",
    "nvext",
)

_MAX_NAME = 128
_MAX_PRIORITY = 9
_TIERS = {"priority": 1, "flex": -1}
# Claude Code before it sent JSON: user_HASH_account_UUID_session_UUID.
_OLD_USER_ID = re.compile(r"user_.*_session_([0-9A-Za-z-]+)")
_VENDOR_SESSION = re.compile(r"x-[a-z0-9-]+-session-id")


@dataclass(frozen=True, slots=True)
class Claim:
    """What one request says about itself."""

    job: str | None = None
    source: str = ""
    """Where the name stands, for people."""
    shared: bool = False
    """The name is that of a person: several runs at once may carry it."""
    parent: str | None = None
    priority: int | None = None
    final: bool = False
    """No further request of this job will come."""


@dataclass(frozen=True, slots=True)
class _Agent:
    """A header that names an agent, which may be a child of its session or of another agent."""

    agent: str
    session: str
    parent: str = ""
    scoped: bool = True
    """The agent's name means something only inside its session."""
    child_if: str = ""
    """The session is the parent only beside this header."""


@dataclass(frozen=True, slots=True)
class _Session:
    """A header that names a session."""

    session: str
    parent: str = ""
    final: str = ""


_AGENTS = (
    _Agent("x-claude-code-agent-id", "x-claude-code-session-id", "x-claude-code-parent-agent-id"),
    _Agent("thread-id", "session-id", "x-codex-parent-thread-id", scoped=False, child_if="x-openai-subagent"),
    _Agent("x-openai-subagent", "session-id"),
)
_SESSIONS = (
    _Session("x-claude-code-session-id"),
    _Session("session-id"),
    _Session("session_id"),
    _Session("conversation_id"),
    _Session("x-session-id", "x-parent-session-id"),
    _Session("x-session-affinity", "x-parent-session-id"),
    _Session("x-dynamo-session-id", "x-dynamo-parent-session-id", "x-dynamo-session-final"),
    _Session("x-litellm-trace-id"),
    _Session("x-litellm-session-id"),
)
_METADATA = ("session_id", "job_id", "conversation_id", "thread_id")


def claim(
    headers: Mapping[str, str], fields: Mapping[str, Any], job_of_answer: Callable[[str], str | None]
) -> Claim:
    """The claim of a request by its headers (lower-case look-up) and body fields (those of `FIELDS`).

    `job_of_answer` gives the job that a response id belongs to. Raises `ApiError` on a bad priority.
    """
    priority = _priority(headers, fields)
    found = (
        _own_headers(headers)
        or _agent_headers(headers)
        or _session_headers(headers)
        or _body(fields, job_of_answer)
        or Claim()
    )
    return Claim(
        found.job,
        found.source,
        found.shared,
        _clean(headers.get("x-astraea-parent")) or found.parent,
        priority,
        found.final or _is_true(headers.get("x-astraea-final")),
    )


def _own_headers(headers: Mapping[str, str]) -> Claim | None:
    job, agent = _clean(headers.get("x-astraea-job")), _clean(headers.get("x-astraea-agent"))
    if not job and not agent:
        return None
    return Claim("/".join(filter(None, (job, agent))), "X-Astraea headers")


def _agent_headers(headers: Mapping[str, str]) -> Claim | None:
    for rule in _AGENTS:
        agent, session = _clean(headers.get(rule.agent)), _clean(headers.get(rule.session))
        if agent is None:
            continue
        parent = _clean(headers.get(rule.parent)) if rule.parent else None
        if rule.scoped:
            inside = f"{session}/" if session else ""
            parent = f"{inside}{parent}" if parent else session
            return Claim(f"{inside}{agent}", rule.agent, parent=parent)
        if parent is None and session != agent and rule.child_if in headers:
            parent = session
        return Claim(agent, rule.agent, parent=parent if parent != agent else None)
    return None


def _session_headers(headers: Mapping[str, str]) -> Claim | None:
    vendors = (
        _Session(name) for name in sorted(h.lower() for h in headers) if _VENDOR_SESSION.fullmatch(name)
    )
    for rule in (*_SESSIONS, *vendors):
        if (session := _clean(headers.get(rule.session))) is not None:
            parent = _clean(headers.get(rule.parent)) if rule.parent else None
            final = _is_true(headers.get(rule.final)) if rule.final else False
            return Claim(session, rule.session, parent=parent if parent != session else None, final=final)
    return None


def _body(fields: Mapping[str, Any], job_of_answer: Callable[[str], str | None]) -> Claim | None:
    for source, name, shared in _body_names(fields, job_of_answer):
        if isinstance(name, str) and (cleaned := _clean(name)) is not None:
            return Claim(cleaned, source, shared)
    return None


def _body_names(
    fields: Mapping[str, Any], job_of_answer: Callable[[str], str | None]
) -> Iterator[tuple[str, object, bool]]:
    """(where, name, whether it is only a person's) in the order in which they count."""
    metadata = fields.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    user_id, user = metadata.get("user_id"), fields.get("user")
    yield "metadata.user_id", _session_of(user_id), False
    for key in _METADATA:
        yield f"metadata.{key}", metadata.get(key), False
    previous = fields.get("previous_response_id")
    if isinstance(previous, str):
        yield "previous_response_id", job_of_answer(previous), False
    yield "prompt_cache_key", fields.get("prompt_cache_key"), False
    conversation = fields.get("conversation")
    yield "conversation", conversation.get("id") if isinstance(conversation, Mapping) else conversation, False
    # Gateways that translate between dialects carry Anthropic's user id over to OpenAI's field.
    yield "user", _session_of(user), False
    yield "safety_identifier", fields.get("safety_identifier"), True
    yield "user", user, True
    yield "metadata.user_id", user_id, True


def _session_of(user_id: object) -> object:
    """The session inside a Claude Code user id, in either of its forms; None when there is none."""
    if not isinstance(user_id, str):
        return None
    if found := _OLD_USER_ID.fullmatch(user_id):
        return found[1]
    if not user_id.startswith("{"):
        return None
    try:
        parsed = json.loads(user_id)
    except (ValueError, RecursionError):
        return None
    return parsed.get("session_id") if isinstance(parsed, dict) else None


def _priority(headers: Mapping[str, str], fields: Mapping[str, Any]) -> int | None:
    """The queues that a job is moved up by: its own header, then Dynamo's hint, then OpenAI's tier."""
    value = headers.get("x-astraea-priority")
    if value is not None:
        try:
            number = int(value)
        except ValueError:
            number = _MAX_PRIORITY + 1
        if not -_MAX_PRIORITY <= number <= _MAX_PRIORITY:
            text = f"X-Astraea-Priority: {value!r} is not a number from -9 to 9"
            raise ApiError(400, text, param="X-Astraea-Priority")
        return number
    nvext = fields.get("nvext")
    hints = nvext.get("agent_hints") if isinstance(nvext, Mapping) else None
    hint = hints.get("priority") if isinstance(hints, Mapping) else None
    if hint is not None:
        if not isinstance(hint, int | float) or isinstance(hint, bool) or hint != hint:
            field = "nvext.agent_hints.priority"
            raise ApiError(400, f"{field}: {hint!r} is not a number", param=field, code="invalid_value")
        return round(max(-_MAX_PRIORITY, min(_MAX_PRIORITY, hint)))
    tier = fields.get("service_tier")
    return _TIERS.get(tier) if isinstance(tier, str) else None


def _clean(name: str | None) -> str | None:
    """A name fit to be shown: printable and short."""
    if name is None:
        return None
    return "".join(c for c in name if c.isprintable())[:_MAX_NAME].strip() or None


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes")
