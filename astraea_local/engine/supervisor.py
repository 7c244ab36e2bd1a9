"""The front's side of the engine: starts it, feeds it, and starts it again when it dies.

A request of which nothing was delivered is run again on the new engine; one that was already streaming
ends with an error that the client may retry. Everything here belongs to one asyncio loop; a thread
only reads the pipe.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from astraea_local.engine import worker
from astraea_local.engine.binding import Tokens
from astraea_local.engine.child import Child, Target
from astraea_local.engine.eventlog import EventLog
from astraea_local.engine.memory import Reading
from astraea_local.engine.messages import (
    AskJob,
    Cancel,
    Delta,
    Embed,
    EndJob,
    Failed,
    Finished,
    Frame,
    JobAction,
    JobVerb,
    LoadFailed,
    Loading,
    Note,
    Paused,
    PauseScheduling,
    Question,
    Ready,
    Reply,
    Resize,
    Resized,
    SetPolicy,
    SimulatePressure,
    Started,
    Stop,
    Submit,
    Suspend,
    ToEngine,
    ToFront,
    ToolCalled,
    Withdraw,
)
from astraea_local.engine.questions import Questions
from astraea_local.engine.restart_policy import RestartPolicy
from astraea_local.engine.worker import EngineSpec
from astraea_local.frame import Event, EventLevel, StateFrame
from astraea_local.profile import PolicyName

_logger = logging.getLogger(__name__)

Status = Literal["loading", "ready", "paused", "restarting", "failed", "stopping"]
"""`paused`: the engine died while its model was unloaded on request, and is started again when that ends."""
SegmentEvent = Started | Delta | Paused | Finished | Failed

# One crash may be bad luck; a request that was there each time is the likely cause.
_MAX_RERUNS = 2
# More than the engine takes to write parked states to disk.
_STOP_S = 15.0


class EngineStartError(Exception):
    """The engine cannot start; the message is fit for a user."""


@dataclass(slots=True, eq=False)
class Handle:
    """A submitted segment, as its request sees it."""

    request: Submit
    events: asyncio.Queue[SegmentEvent] = field(default_factory=asyncio.Queue)
    delivered: bool = False
    """Whether text went to the client, so that running it again would repeat text."""
    reruns: int = 0
    phase: Literal["queued", "running", "paused"] = "queued"

    async def __aiter__(self) -> AsyncIterator[SegmentEvent]:
        """Everything that happens to the segment, up to `Finished` or `Failed`."""
        while True:
            event = await self.events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return


class Engine:
    """A supervised engine process."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        target: Target = worker.main,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """`target` runs in the child; `on_progress` gets the share of the model that is loaded, 0..1."""
        self._spec = spec
        self._target = target
        self._on_progress = on_progress
        self._ids = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        self._questions = Questions()
        self._embedding = 0
        self._child: Child | None = None
        self._ready_at = 0.0
        self._restart_policy = RestartPolicy()
        self._started: asyncio.Future[Ready] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._frame_changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.ready: Ready | None = None
        self.status: Status = "loading"
        self.progress = 0.0
        self.restarts = 0
        self.failure = ""
        self.frame: StateFrame | None = None
        self.log = EventLog()
        self._scheduling_paused = False
        self._unloaded = False
        self.simulated: Reading | None = None

    @property
    def in_flight(self) -> int:
        """Segments that are queued or running, and requests for embeddings."""
        return len(self._handles) + self._embedding

    async def start(self) -> Ready:
        """Starts the child and waits until it serves. Raises `EngineStartError`."""
        self._started = asyncio.get_running_loop().create_future()
        self._spawn()
        return await self._started

    def next_id(self) -> int:
        """A segment id never used before."""
        return next(self._ids)

    def submit(self, request: Submit) -> Handle:
        """Hands a segment over; while the engine restarts it is kept and handed over later."""
        handle = Handle(request)
        self._handles[request.segment] = handle
        self._idle.clear()
        if self.status in ("failed", "stopping"):
            text = self.failure or "the server is stopping"
            self._give(handle, Failed(request.segment, text, f"engine_{self.status}", retryable=True))
        elif self.status == "ready":
            self._send([request])
        return handle

    def cancel(self, handle: Handle) -> None:
        """Gives a segment up; what it computed stays reusable."""
        if self._remove(handle.request.segment) and self.status in ("ready", "stopping"):
            self._send([Cancel(handle.request.segment)])

    def tool_called(self, job: str, tool: str) -> None:
        """Tells the engine which tool a job now waits for, `name` or `name:verb`."""
        if self.status == "ready":
            self._send([ToolCalled(job, tool)])

    def end_job(self, job: str) -> None:
        """Tells the engine that a job is over."""
        if self.status == "ready":
            self._send([EndJob(job)])

    def note(self, job: str, text: str) -> None:
        """Shows something about a job to whoever watches."""
        if self.status == "ready":
            self._send([Note(job, text)])

    def set_policy(self, name: PolicyName) -> None:
        """Goes on with another scheduling policy, after a restart of the engine as well."""
        profile = self._spec.profile
        scheduler = profile.scheduler.model_copy(update={"policy": name})
        self._spec = replace(self._spec, profile=profile.model_copy(update={"scheduler": scheduler}))
        if self.status == "ready":
            self._send([SetPolicy(name)])

    @property
    def policy(self) -> PolicyName:
        """The policy in force."""
        return self._spec.profile.scheduler.policy

    async def resize(self, size: int, slots: int) -> Reply:
        """Goes on with a context of that many cells and slots, after a restart of the engine as well; says
        what was done or why not.
        """
        reply = await self._ask(Resize(self.next_id(), size, slots))
        if reply.outcome == "done":
            profile = self._spec.profile
            context = profile.context.model_copy(update={"size": size, "slots": slots})
            self._spec = replace(self._spec, profile=profile.model_copy(update={"context": context}))
        return reply

    async def suspend(self, on: bool) -> Reply:
        """Unloads the model, so that its memory is free, or loads it again; requests wait meanwhile."""
        if self.status == "paused":
            return await self._wake() if not on else Reply(0, "done", "the server is paused already")
        reply = await self._ask(Suspend(self.next_id(), on))
        if reply.outcome == "done":
            self._unloaded = on
        return reply

    async def act(self, job: str, action: JobVerb, value: int = 0) -> Reply:
        """Does something with a job; says what was done or why not. `value` is for `priority`."""
        return await self._ask(JobAction(self.next_id(), job, action, value))

    async def pause_scheduling(self, on: bool) -> Reply:
        """Admits nothing new while `on`, after a restart of the engine as well."""
        reply = await self._ask(PauseScheduling(self.next_id(), on))
        if reply.outcome == "done":
            self._scheduling_paused = on
        return reply

    async def job_detail(self, job: str) -> Reply:
        """A job's `JobDetail` as JSON."""
        return await self._ask(AskJob(self.next_id(), job))

    async def embed(self, inputs: tuple[Tokens, ...]) -> Reply:
        """The embeddings of some inputs, as `Embed` says; the engine stops when the caller is cancelled."""
        question = Embed(self.next_id(), inputs)
        self._embedding += 1
        self._idle.clear()
        try:
            return await self._ask(question)
        except asyncio.CancelledError:
            self._questions.withdrawn(question)
            if self.status in ("ready", "stopping"):
                self._send([Withdraw(question.request)])
            raise
        finally:
            self._embedding -= 1
            self._check_idle()

    def simulate_pressure(self, reading: Reading | None) -> None:
        """Goes on as if memory were like that, after a restart of the engine as well; None ends it."""
        self.simulated = reading
        if self.status == "ready":
            self._send([SimulatePressure(reading)])

    async def next_frame(self, wait_s: float) -> bool:
        """Waits for a newer frame; False when none came in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._frame_changed.wait(), wait_s)
            return True
        return False

    async def stop(self, drain_s: float) -> None:
        """Lets running segments end for at most `drain_s`, cancels the rest, and ends the child."""
        self.status = "stopping" if self.status == "ready" else self.status
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_s)
        self.status = "stopping"
        if self._child is not None:
            self._child.ignore()
        if self._restart is not None:
            self._restart.cancel()
        for handle in list(self._handles.values()):
            self._give(handle, Failed(handle.request.segment, "the server is stopping", "stopping", True))
        self._questions.no_answer("the server is stopping")
        self._send([Stop()])
        if self._child is not None:
            await asyncio.to_thread(self._child.end, _STOP_S)

    # -- the child ---------------------------------------------------------------------------------

    def _spawn(self) -> None:
        self._child = Child(self._target, self._spec, on_messages=self._on_messages, on_death=self._on_death)

    async def _ask(self, question: Question) -> Reply:
        if self.status != "ready":
            remedy = "resume it first" if self.status == "paused" else "try again later"
            return Reply(question.request, "unavailable", f"the engine is {self.status}: {remedy}")
        asked = self._questions.asked(question)
        self._send([question])
        return await asked

    def _send(self, messages: list[ToEngine]) -> None:
        if self._child is not None:
            self._child.send(messages)

    # -- what it says ------------------------------------------------------------------------------

    def _on_messages(self, messages: list[ToFront]) -> None:
        for message in messages:
            match message:
                case Loading(fraction):
                    self.progress = fraction
                    if self._on_progress is not None:
                        self._on_progress(fraction)
                case Ready():
                    self._on_ready(message)
                case LoadFailed(text):
                    self._on_load_failed(text)
                case Frame(json):
                    self._on_frame(json)
                case Reply():
                    self._questions.answered(message)
                case Resized():
                    self._on_resized(message)
                case _:
                    self._on_segment(message)

    def _on_ready(self, message: Ready) -> None:
        self.ready = message
        self.status = "ready"
        self._ready_at = time.monotonic()
        if self.simulated is not None:
            self._send([SimulatePressure(self.simulated)])
        if self._scheduling_paused:
            self._send([PauseScheduling(self.next_id(), True)])
        self._send([h.request for h in self._handles.values()])
        if self._started is not None and not self._started.done():
            self._started.set_result(message)

    def _on_load_failed(self, text: str) -> None:
        if self._child is not None:
            self._child.ignore()
        self._not_started(text)

    def _on_resized(self, sizes: Resized) -> None:
        if self.ready is not None:
            self.ready = replace(
                self.ready, slots=sizes.slots, context=sizes.context, job_context=sizes.job_context
            )

    def _on_frame(self, json: bytes) -> None:
        frame = StateFrame.model_validate_json(json)
        if not (self.status == "ready" and frame.status == "paused"):
            frame.status = self.status
        frame.restarts = self.restarts
        frame.events = self.log.take(frame.events)
        self.frame = frame
        self._frame_changed.set()
        self._frame_changed = asyncio.Event()

    def _on_segment(self, event: SegmentEvent) -> None:
        handle = self._handles.get(event.segment)
        if handle is None:
            return
        if isinstance(event, Finished) and event.reason == "cancelled":
            # Not by its client, which would have no handle any more.
            event = Failed(event.segment, "this request was cancelled on the server", "cancelled")
        match event:
            case Started():
                handle.phase = "running"
            case Paused():
                handle.phase = "paused"
            case Delta():
                handle.phase = "running"
                handle.delivered = True
        self._give(handle, event)

    def _give(self, handle: Handle, event: SegmentEvent) -> None:
        if isinstance(event, Finished | Failed):
            self._remove(event.segment)
        handle.events.put_nowait(event)

    def _remove(self, segment: int) -> bool:
        known = self._handles.pop(segment, None) is not None
        self._check_idle()
        return known

    def _check_idle(self) -> None:
        if not self.in_flight:
            self._idle.set()

    # -- when it dies ------------------------------------------------------------------------------

    def _on_death(self) -> None:
        assert self._child is not None
        end = self._child.reap()
        self._restart_policy.died(time.monotonic() - self._ready_at)
        _logger.error("the engine died (%s)", end)
        self._tell("error", f"the engine died ({end})")
        self.log.begin_life()
        if self._started is not None and not self._started.done():
            self._not_started(f"the engine died while loading the model ({end})")
            return
        self._questions.no_answer(f"the engine died ({end})")
        for handle in list(self._handles.values()):
            self._decide_rerun(handle, end)
        delay = self._restart_policy.delay_s
        if delay is None:
            self._fail_for_good(f"the engine died {self._restart_policy.crashes} times in a row ({end})")
            return
        if self._unloaded:
            # The memory belongs to others until a user says otherwise.
            self.status = "paused"
            self._tell("warning", "the engine is started again on `resume`")
            return
        self.status = "restarting"
        self._restart = asyncio.get_running_loop().create_task(self._restart_after(delay))

    async def _wake(self) -> Reply:
        """Starts the engine that died while its model was unloaded."""
        self._unloaded = False
        self.status = "restarting"
        self._started = asyncio.get_running_loop().create_future()
        self._restart = asyncio.get_running_loop().create_task(self._restart_after(0.0))
        try:
            await asyncio.shield(self._started)
        except EngineStartError as error:
            return Reply(0, "unavailable", f"the model cannot be loaded, the server stays paused: {error}")
        return Reply(0, "done", "the model is loaded again; waiting requests go on")

    def _not_started(self, text: str) -> None:
        """Loading failed: for good, unless a user had unloaded the model and may try again."""
        waking = self.ready is not None and self._started is not None and not self._started.done()
        if not waking:
            self._fail_for_good(text)
            return
        assert self._started is not None
        self.status, self._unloaded = "paused", True
        self._tell("error", f"the server stays paused: {text}")
        self._started.set_exception(EngineStartError(text))

    def _decide_rerun(self, handle: Handle, end: str) -> None:
        if not handle.delivered and handle.reruns < _MAX_RERUNS:
            handle.reruns += 1
            handle.phase = "queued"
            return
        text = f"the engine died while this request was running ({end}); try again"
        self._give(handle, Failed(handle.request.segment, text, "engine_restarted", retryable=True))

    async def _restart_after(self, delay: float) -> None:
        await asyncio.sleep(delay)
        self.restarts += 1
        _logger.warning("starting the engine again (restart %d)", self.restarts)
        self._tell("warning", f"starting the engine again (restart {self.restarts})")
        self._spawn()

    def _tell(self, level: EventLevel, text: str) -> None:
        """Puts a line of the front's own into the event log."""
        self.log.add(Event(at=time.time(), level=level, text=text))
        if self.frame is not None:
            self.frame = self.frame.model_copy(update={"events": self.log.lines})
            self._frame_changed.set()
            self._frame_changed = asyncio.Event()

    def _fail_for_good(self, text: str) -> None:
        self.status, self.failure = "failed", text
        if self._started is not None and not self._started.done():
            self._started.set_exception(EngineStartError(text))
        for handle in list(self._handles.values()):
            self._give(handle, Failed(handle.request.segment, text, "engine_failed", retryable=True))
