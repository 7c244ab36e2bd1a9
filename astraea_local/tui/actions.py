"""What the UI can ask of a server, through its public HTTP API."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from astraea_local.job_detail import JobDetail
from astraea_local.past_jobs import Page, Query
from astraea_local.tui.connection import CONNECT_S, message_of
from astraea_local.tui.render.units import clean

JobVerb = Literal["pin", "unpin", "park", "drop", "cancel", "priority"]
Verb = (
    JobVerb
    | Literal["pause scheduling", "resume scheduling", "policy", "resize", "pause server", "resume server"]
)
PRIORITIES = (-9, 9)

_Model = TypeVar("_Model", bound=BaseModel)

_PATHS: dict[str, str] = {
    "pause scheduling": "scheduler/pause",
    "resume scheduling": "scheduler/resume",
    "policy": "policy",
    "resize": "context",
    "pause server": "pause",
    "resume server": "resume",
}
_QUESTIONS: dict[str, str] = {
    "drop": "Drop the KV of {job}? Its next call computes the whole context again.",
    "cancel": "Cancel {job}? Its running call ends without the rest of its answer.",
    "pause scheduling": "Pause the scheduler? What runs goes on, nothing else is admitted.",
    "resize": "Make the context anew with {size} cells and {slots} slots? Running calls wait meanwhile.",
    "pause server": "Give the GPU's memory back? Running calls are parked, requests wait until it resumes.",
}
# Making the context anew, or parking everything, may take longer than other answers.
_PATIENCE = httpx.Timeout(120.0, connect=CONNECT_S)


class ActionError(Exception):
    """What was asked was not done; the message is one line for a user."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something to ask of the server."""

    verb: Verb
    job: str | None = None
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Below `/astraea/v1/`; job names are client text, so they are quoted."""
        if self.job is not None:
            return f"jobs/{quote(self.job, safe='')}/{self.verb}"
        return _PATHS[self.verb]

    @property
    def question(self) -> str:
        """What to ask before doing it; empty where it does not hurt."""
        return _QUESTIONS.get(self.verb, "").format(job=clean(self.job or ""), **self.body)

    @property
    def text(self) -> str:
        """For the log: `park coder-1`."""
        values = " ".join(str(value) for value in self.body.values())
        return " ".join(part for part in (self.verb, clean(self.job or ""), values) if part)


class _Policy(BaseModel):
    name: str
    summary: str


class _Policies(BaseModel):
    policies: list[_Policy]


class Control(Protocol):
    """The other side of a source."""

    refusal: str
    """Why nothing can be changed; empty when it can."""

    async def act(self, action: Action) -> str:
        """Does it and says what happened. Raises `ActionError`."""
        ...

    async def detail(self, job: str) -> JobDetail:
        """The life of a job. Raises `ActionError` where it is not to be had."""
        ...

    async def history(self, query: Query) -> Page:
        """Finished jobs. Raises `ActionError` where there is no history."""
        ...

    async def policies(self) -> list[tuple[str, str]]:
        """Scheduling policies with what they do. Raises `ActionError`."""
        ...


class HttpControl:
    """Asks a running server."""

    def __init__(self, client: httpx.AsyncClient, *, readonly: bool = False) -> None:
        self.refusal = "read-only: started with --readonly" if readonly else ""
        self._client = client

    async def act(self, action: Action) -> str:
        """Posts it; the answer's `done`, or that it was accepted. Raises `ActionError`."""
        if self.refusal:
            raise ActionError(self.refusal)
        body = await self._ask("POST", action.path, json=action.body or None, timeout=_PATIENCE)
        return str(body.get("done") or "done")

    async def detail(self, job: str) -> JobDetail:
        """From `/astraea/v1/jobs/{job}`. Raises `ActionError`."""
        return _checked(JobDetail, await self._ask("GET", f"jobs/{quote(job, safe='')}"))

    async def history(self, query: Query) -> Page:
        """From `/astraea/v1/history`. Raises `ActionError`."""
        return _checked(Page, await self._ask("GET", "history", params=query.model_dump()))

    async def policies(self) -> list[tuple[str, str]]:
        """From `/astraea/v1/policy`. Raises `ActionError`."""
        body = _checked(_Policies, await self._ask("GET", "policy"))
        return [(entry.name, entry.summary) for entry in body.policies]

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = await self._client.request(method, f"/astraea/v1/{path}", **options)
        except httpx.HTTPError as error:
            raise ActionError(f"the server did not answer ({type(error).__name__})") from None
        if answer.is_error:
            raise ActionError(message_of(answer))
        try:
            body = answer.json()
        except ValueError:
            raise ActionError("the server's answer is not JSON") from None
        return body if isinstance(body, dict) else {}


class Refusing:
    """For a recording: there is nothing to change and nothing more to know."""

    refusal = "a recording cannot be changed"

    async def act(self, action: Action) -> str:
        """Raises `ActionError`."""
        raise ActionError(f"{action.verb}: {self.refusal}")

    async def detail(self, job: str) -> JobDetail:
        """Raises `ActionError`; the timeline is then what the frames showed."""
        raise ActionError(f"the recording has no more than the frames about {job}")

    async def history(self, query: Query) -> Page:
        """Raises `ActionError`."""
        raise ActionError(f"history (sorted by {query.sort}) is not part of a recording")

    async def policies(self) -> list[tuple[str, str]]:
        """Raises `ActionError`."""
        raise ActionError(self.refusal)


def _checked(kind: type[_Model], body: dict[str, Any]) -> _Model:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise ActionError(f"the server's answer is of another version: {error.errors()[0]['msg']}") from None
