"""The way of a conversation: what every chat dialect shares between its own request and its own answer.

A dialect makes a `ChatRequest`, opens a `Conversation` with it, and tells the events in its own words.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from fastapi import Request

from astraea_local.api.chat_plan import ChatPlan
from astraea_local.api.parts import AnswerPart, Reasoning, Text, ToolArguments, ToolCall, ToolCallBegun
from astraea_local.api.schemas import ChatRequest
from astraea_local.api.service import Call, Service
from astraea_local.api.tools import tool_key
from astraea_local.engine.messages import ChosenToken, Delta, Finished, Paused, Started


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of the tokens that the parts after it come from."""

    tokens: tuple[ChosenToken, ...]


AnswerEvent = AnswerPart | Logprobs | Started | Paused | Finished


@dataclass(slots=True)
class ChatAnswer:
    """One choice, complete."""

    finished: Finished
    """Its `reason` is `stop`, `length` or `tool_calls`."""
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: tuple[ChosenToken, ...] = ()


class Conversation:
    """A chat request that was taken in."""

    def __init__(self, service: Service, call: Call, plan: ChatPlan) -> None:
        self.call = call
        self._service = service
        self._parsers = [plan.parser() for _ in call.handles]
        self._calls: list[list[ToolCall]] = [[] for _ in call.handles]

    async def events(self) -> AsyncIterator[tuple[int, AnswerEvent]]:
        """Events of all choices as they come, with the choice's index. Raises `ApiError`.

        Each choice ends in `Finished`, whose text is empty and whose reason is `tool_calls` where the model
        called some. Tool calls of a choice come one after another.
        """
        async for index, event in self._service.events(self.call):
            if isinstance(event, Started | Paused):
                yield index, event
            if not isinstance(event, Delta | Finished):
                continue
            if event.logprobs:
                yield index, Logprobs(event.logprobs)
            for part in self._parts(index, event):
                self._remember(index, part)
                yield index, part
            if isinstance(event, Finished):
                yield index, self._ended(index, event)

    async def answers(self) -> list[ChatAnswer]:
        """All choices, complete. Raises `ApiError`."""
        count = len(self.call.handles)
        texts: list[list[str]] = [[] for _ in range(count)]
        thoughts: list[list[str]] = [[] for _ in range(count)]
        logprobs: list[list[ChosenToken]] = [[] for _ in range(count)]
        ended: dict[int, Finished] = {}
        async for index, event in self.events():
            match event:
                case Text(text):
                    texts[index].append(text)
                case Reasoning(text):
                    thoughts[index].append(text)
                case Logprobs(tokens):
                    logprobs[index].extend(tokens)
                case Finished():
                    ended[index] = event
        return [
            ChatAnswer(ended[i], "".join(texts[i]), "".join(thoughts[i]), self._calls[i], tuple(logprobs[i]))
            for i in range(count)
        ]

    def close(self) -> None:
        """Ends what still runs; needed also where nobody ever asked for the events."""
        self._service.close(self.call)

    def _parts(self, index: int, event: Delta | Finished) -> list[AnswerPart]:
        parser = self._parsers[index]
        parts = parser.push(event.text) if event.text else []
        return parts + parser.finish() if isinstance(event, Finished) else parts

    def _remember(self, index: int, part: AnswerPart) -> None:
        calls = self._calls[index]
        match part:
            case ToolCallBegun(_, id_, name):
                calls.append(ToolCall(id_, name, ""))
            case ToolArguments(number, fragment):
                calls[number] = replace(calls[number], arguments=calls[number].arguments + fragment)

    def _ended(self, index: int, event: Finished) -> Finished:
        calls = self._calls[index]
        if not calls:
            return replace(event, text="", logprobs=())
        first = next(iter(filter(None, self._calls)))[0]
        self._service.engine.tool_called(self.call.identity.job, tool_key(first.name, first.arguments))
        reason = "tool_calls" if event.reason == "stop" else event.reason
        return replace(event, text="", logprobs=(), reason=reason)


async def open_conversation(
    service: Service,
    request: Request,
    body: ChatRequest,
    *,
    endpoint: str,
    top: int | None = None,
    tool: str | None = None,
) -> Conversation:
    """Takes a conversation in; `top` is the number of alternatives to report. Raises `ApiError`.

    `tool` is the one that the request comes back from; None = what the messages say.
    """
    service.check_ready(body.n)
    # Long conversations and large schemas must not hold up other requests.
    plan = await asyncio.to_thread(service.text.chat_plan, body)
    call = await service.open(
        request,
        body,
        plan.prompt,
        endpoint=endpoint,
        top=top,
        shown=plan.shown,
        guidance=plan.guidance,
        tool=tool,
    )
    return Conversation(service, call, plan)
