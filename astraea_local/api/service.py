"""Requests become segments here, and their events become answers; what the endpoints share."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request

from astraea_local.api.errors import ApiError, from_failure
from astraea_local.api.hygiene import Outline, outline
from astraea_local.api.identity import Identity, JobBook
from astraea_local.api.metrics import Metrics
from astraea_local.api.names import FIELDS
from astraea_local.api.schemas import ChatRequest, Generation
from astraea_local.api.tenants import Tenants
from astraea_local.api.text_model import TextModel
from astraea_local.api.tools import kind_of, returned_tool
from astraea_local.engine.binding import Tokens
from astraea_local.engine.messages import ChosenToken, Delta, Failed, Finished, Submit
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.supervisor import Engine, Handle, SegmentEvent
from astraea_local.profile import Profile

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)

_LOADING_RETRY_S = 2.0
_BUSY_RETRY_S = 5.0


@dataclass(slots=True)
class Answer:
    """One choice, complete."""

    text: str
    finished: Finished
    logprobs: tuple[ChosenToken, ...]


@dataclass(slots=True)
class Call:
    """A request that was taken in: its job and the segments of its choices."""

    endpoint: str
    identity: Identity
    prompt: Tokens
    handles: list[Handle]
    finished: dict[int, Finished] = field(default_factory=dict)
    tenant: str = ""
    outline: Outline | None = None
    deadline: float | None = None
    """On the event loop's clock."""
    closed: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer: its job, whose name is percent-encoded where it is not ASCII."""
        return {"X-Astraea-Job": "".join(c if c.isascii() else quote(c) for c in self.identity.job)}

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts as OpenAI reports them; cached ones are those of the first choice."""
        output = sum(f.output_tokens for f in self.finished.values())
        cached = self.finished[0].cached_tokens if 0 in self.finished else 0
        return {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": output,
            "total_tokens": len(self.prompt) + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    @property
    def timings(self) -> dict[str, Any]:
        """What happened to the first choice, milliseconds; an extension."""
        first = self.finished.get(0)
        if first is None:
            return {"job": self.identity.job}
        return {
            "job": self.identity.job,
            "identified_by": self.identity.source,
            "queued_ms": round(1000 * first.queued_s, 1),
            "prefill_ms": round(1000 * first.prefill_s, 1),
            "decode_ms": round(1000 * first.decode_s, 1),
        }


class Service:
    """The front's state; one for each app."""

    def __init__(self, profile: Profile, engine: Engine, text: TextModel) -> None:
        self.profile = profile
        self.engine = engine
        self.text = text
        self.book = JobBook(
            generation_prompt_tokens=text.generation_prompt_tokens,
            idle_s=profile.server.job_idle_s,
            decode=text.decode,
        )
        self.tenants = Tenants(profile.server.max_queue_per_key)
        self.metrics = Metrics(lambda: engine.frame)

    def check_ready(self, choices: int = 1) -> int:
        """The longest context of a job, in tokens. Raises `ApiError` when no request can be taken now."""
        engine = self.engine
        if engine.status == "failed":
            raise ApiError(503, f"the engine cannot run: {engine.failure}", code="engine_failed")
        if engine.status == "stopping":
            raise ApiError(503, "the server is stopping", code="stopping", retry_after_s=_LOADING_RETRY_S)
        if engine.ready is None:
            share = f"{engine.progress:.0%}"
            raise ApiError(
                503, f"the model is loading ({share})", code="loading", retry_after_s=_LOADING_RETRY_S
            )
        most = self.profile.server.max_queue
        if choices > most:
            raise ApiError(400, f"n: {choices} choices are more than server.max_queue ({most})", param="n")
        if engine.in_flight + choices > most:
            raise ApiError(
                429,
                f"{engine.in_flight} requests are queued or running, server.max_queue is {most}: "
                "try again later",
                code="queue_full",
                retry_after_s=_BUSY_RETRY_S,
            )
        return engine.ready.job_context

    async def open(
        self,
        request: Request,
        body: Generation,
        prompt: Tokens,
        *,
        endpoint: str,
        top: int | None,
        shown: tuple[int, ...] = (),
        guidance: str | None = None,
        tool: str | None = None,
    ) -> Call:
        """Takes a request in; `top` is the number of alternatives to report. Raises `ApiError`.

        `shown` are special tokens whose text the output keeps, `guidance` is the grammar that it follows.
        `tool` is the one that the request comes back from; None = what its messages say.
        """
        sampling = replace(await asyncio.to_thread(self._sampling, body, top), guidance=guidance)
        # Behind that wait, so that it still holds when the segments are submitted.
        limit = self._room(body, prompt)
        tenant, parts = getattr(request.state, "tenant", ""), outline(body)
        identity = self._identify(request, body, prompt, tenant, parts)
        if self.profile.server.log_prompts:
            _logger.warning("%s: %s", identity.job, self.text.decode(prompt))
        wanted = body.max_tokens
        if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
            wanted = body.max_completion_tokens
        template = Submit(
            segment=0,
            job=identity.job,
            prompt=prompt,
            max_output=limit - len(prompt) if wanted is None else wanted,
            sampling=sampling,
            stops=body.stops,
            shown=shown,
            ignore_eos=body.ignore_eos,
            stream=body.stream,
            parent=identity.parent,
            priority=identity.priority,
            kind=kind_of(prompt),
            tool=_returned(body) if tool is None else tool,
        )
        handles = [self._submit(template, _seed(body.seed, choice)) for choice in range(body.n)]
        if (loss := identity.loss) is not None:
            self.engine.note(identity.job, loss.text)
            self.metrics.prefix_lost(loss.cause, loss.known - loss.at)
        return Call(
            endpoint, identity, prompt, handles, tenant=tenant, outline=parts, deadline=self.deadline()
        )

    def _room(self, body: Generation, prompt: Tokens) -> int:
        """Tokens that prompt and answer may have. Raises `ApiError` for a prompt that leaves none."""
        limit = self.check_ready(body.n)
        if len(prompt) == 0:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if len(prompt) >= limit:
            raise ApiError(
                400,
                # Clients know these words, and compact the conversation.
                f"prompt is too long: {len(prompt)} tokens > {limit} maximum of a job's context: shorten it, "
                "or serve with a larger context.size or fewer context.slots",
                code="context_length_exceeded",
                param="messages" if isinstance(body, ChatRequest) else "prompt",
            )
        return limit

    def _identify(
        self, request: Request, body: Generation, prompt: Tokens, tenant: str, parts: Outline | None
    ) -> Identity:
        """The request's job, its choices counted in. Raises `ApiError`."""
        self.tenants.take(tenant, body.n)
        fields = {name: getattr(body, name) for name in FIELDS}
        try:
            return self.book.identify(request.headers, fields, prompt, tenant=tenant, outline=parts)
        except ApiError:
            self.tenants.release(tenant, body.n)
            raise

    def _submit(self, template: Submit, seed: int) -> Handle:
        sampling = replace(template.sampling, seed=seed)
        return self.engine.submit(replace(template, segment=self.engine.next_id(), sampling=sampling))

    async def events(self, call: Call) -> AsyncIterator[tuple[int, SegmentEvent]]:
        """Events of all choices as they come, with the choice's index. Raises `ApiError`.

        Whatever way it ends, nothing of the call goes on running.
        """
        merged: asyncio.Queue[tuple[int, SegmentEvent]] = asyncio.Queue()

        async def forward(index: int, handle: Handle) -> None:
            async for event in handle:
                merged.put_nowait((index, event))

        tasks = [asyncio.create_task(forward(i, h)) for i, h in enumerate(call.handles)]
        outcome = "cancelled"
        try:
            while len(call.finished) < len(call.handles):
                index, event = await self.in_time(merged.get(), call.deadline)
                if isinstance(event, Failed):
                    outcome = "failed"
                    raise from_failure(event)
                if isinstance(event, Finished):
                    call.finished[index] = event
                    self.metrics.segment(event)
                yield index, event
            outcome = "finished"
        finally:
            for task in tasks:
                task.cancel()
            self.close(call, outcome)

    def deadline(self) -> float | None:
        """When a request that comes now has to be answered, on the event loop's clock."""
        timeout_s = self.profile.server.request_timeout_s
        return asyncio.get_running_loop().time() + timeout_s if timeout_s else None

    async def in_time(self, work: Awaitable[_T], deadline: float | None) -> _T:
        """What `work` gives. Raises `ApiError` at the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except TimeoutError:
            limit = self.profile.server.request_timeout_s
            text = f"the request took longer than server.request_timeout_s allows ({limit:g} s)"
            # Sent again at once it would take as long again.
            headers = {"x-should-retry": "false"}
            raise ApiError(504, text, code="request_timeout", headers=headers) from None

    async def answers(self, call: Call) -> list[Answer]:
        """All choices, complete. Raises `ApiError`."""
        texts: list[list[str]] = [[] for _ in call.handles]
        logprobs: list[list[ChosenToken]] = [[] for _ in call.handles]
        async for index, event in self.events(call):
            if isinstance(event, Delta | Finished):
                texts[index].append(event.text)
                logprobs[index].extend(event.logprobs)
        return [
            Answer("".join(texts[i]), call.finished[i], tuple(logprobs[i])) for i in range(len(call.handles))
        ]

    def close(self, call: Call, outcome: str = "cancelled") -> None:
        """Ends what still runs of a call; needed also where nobody ever asked for its events."""
        if call.closed:
            return
        call.closed = True
        for handle in call.handles:
            self.engine.cancel(handle)
        self.tenants.release(call.tenant, len(call.handles))
        first = call.finished.get(0)
        job = call.identity.job
        self.book.finish(job, call.prompt, None if first is None else first.output, call.outline)
        self.metrics.request(call.endpoint, outcome)
        if call.identity.final:
            if (seconds := self.book.completion_time(job)) is not None:
                self.metrics.job(seconds)
            self.book.end(job)
            self.engine.end_job(job)

    def _sampling(self, body: Generation, top: int | None) -> SamplingParams:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        self.text.check_tokens(list(bias), "logit_bias")
        return SamplingParams(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            min_p=body.min_p,
            typical_p=body.typical_p,
            repeat_penalty=body.repetition_penalty or body.repeat_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repeat_last_n=body.repeat_last_n,
            dry_multiplier=body.dry_multiplier,
            dry_base=body.dry_base,
            dry_allowed_length=body.dry_allowed_length,
            dry_penalty_last_n=body.dry_penalty_last_n,
            dry_breakers=tuple(body.dry_sequence_breakers),
            logit_bias=bias,
            grammar=self.text.gbnf(body),
            logprobs=top,
        )


async def until_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of `work`, which is cancelled, giving None, when the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        # What it came to in the end is of no interest, a failure neither.
        await asyncio.gather(task, return_exceptions=True)
        return None
    finally:
        task.cancel()
        watcher.cancel()


def _returned(body: Generation) -> str:
    return returned_tool(body.messages) if isinstance(body, ChatRequest) else ""


def _seed(wanted: int | None, choice: int) -> int:
    if wanted is None:
        return secrets.randbits(32)
    return (wanted + choice) & 0xFFFFFFFF
