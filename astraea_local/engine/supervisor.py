"""The front's side of the engine: starts it, feeds it, and starts it again when it dies.

A request of which nothing was delivered is run again on the new engine; one that was already streaming
ends with an error that the client may retry. Everything here belongs to one asyncio loop; a thread
only reads the pipe.
"""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

from astraea_local.engine import worker
from astraea_local.engine.eventlog import EventLog
from astraea_local.engine.memory import Reading
from astraea_local.engine.messages import (
    AskJob,
    Cancel,
    Delta,
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
)
from astraea_local.engine.worker import EngineSpec
from astraea_local.frame import Event, EventLevel, StateFrame
from astraea_local.profile import PolicyName

_logger = logging.getLogger(__name__)

Status = Literal["loading", "ready", "restarting", "failed", "stopping"]
SegmentEvent = Started | Delta | Paused | Finished | Failed

# One crash may be bad luck; a request that was there each time is the likely cause.
_MAX_RERUNS = 2
_MAX_CRASHES = 5
_HEALTHY_S = 60.0
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0
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
        target: Callable[[EngineSpec, Connection], None] = worker.main,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """`target` runs in the child; `on_progress` gets the share of the model that is loaded, 0..1."""
        self._spec = spec
        self._target = target
        self._on_progress = on_progress
        self._ids = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        self._asked: dict[int, asyncio.Future[Reply]] = {}
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._generation = 0
        self._ready_at = 0.0
        self._crashes = 0
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
        self.simulated: Reading | None = None

    @property
    def in_flight(self) -> int:
        """Segments that are queued or running."""
        return len(self._handles)

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
        """Goes on with a context of that many cells and slots; says what was done or why not."""
        return await self._ask(Resize(self.next_id(), size, slots))

    async def suspend(self, on: bool) -> Reply:
        """Unloads the model, so that its memory is free, or loads it again; requests wait meanwhile."""
        return await self._ask(Suspend(self.next_id(), on))

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
        self._generation += 1
        if self._restart is not None:
            self._restart.cancel()
        for handle in list(self._handles.values()):
            self._give(handle, Failed(handle.request.segment, "the server is stopping", "stopping", True))
        for request in list(self._asked):
            self._on_reply(Reply(request, "unavailable", "the server is stopping"))
        self._send([Stop()])
        await asyncio.to_thread(self._end_process)

    # -- the child ---------------------------------------------------------------------------------

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._generation += 1
        self._connection = ours
        self._process = context.Process(
            target=self._target, args=(self._spec, theirs), name="astraea-engine", daemon=True
        )
        self._process.start()
        theirs.close()
        reader = threading.Thread(
            target=self._read,
            args=(ours, self._generation, asyncio.get_running_loop()),
            name="engine-reader",
            daemon=True,
        )
        reader.start()

    def _read(self, connection: Connection, generation: int, loop: asyncio.AbstractEventLoop) -> None:
        def post(call: Callable[..., None], *args: object) -> bool:
            try:
                loop.call_soon_threadsafe(call, generation, *args)
            except RuntimeError:  # the loop is closed: the server is gone
                return False
            return True

        while True:
            try:
                messages = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own child
            except (EOFError, OSError):
                post(self._on_death)
                return
            if not post(self._on_messages, messages):
                return

    async def _ask(self, question: Question) -> Reply:
        if self.status != "ready":
            return Reply(question.request, "unavailable", f"the engine is {self.status}: try again later")
        asked: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asked[question.request] = asked
        self._send([question])
        return await asked

    def _send(self, messages: list[ToEngine]) -> None:
        # A dead child is noticed by the reader, which decides what becomes of the requests.
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.send_bytes(pickle.dumps(messages, protocol=pickle.HIGHEST_PROTOCOL))

    def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()
            process.join()
        if self._connection is not None:
            self._connection.close()

    # -- what it says ------------------------------------------------------------------------------

    def _on_messages(self, generation: int, messages: list[ToFront]) -> None:
        if generation != self._generation:
            return
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
                    self._on_reply(message)
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
        self._generation += 1
        self._fail_for_good(text)

    def _on_reply(self, reply: Reply) -> None:
        asked = self._asked.pop(reply.request, None)
        if asked is not None and not asked.done():
            asked.set_result(reply)

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
        if not self._handles:
            self._idle.set()
        return known

    # -- when it dies ------------------------------------------------------------------------------

    def _on_death(self, generation: int) -> None:
        if generation != self._generation or self._process is None:
            return
        self._process.join()
        code = self._process.exitcode
        if self._connection is not None:
            self._connection.close()
        self._crashes = 1 if time.monotonic() - self._ready_at > _HEALTHY_S else self._crashes + 1
        _logger.error("the engine died (%s)", _exit_words(code))
        self._tell("error", f"the engine died ({_exit_words(code)})")
        self.log.begin_life()
        if self._started is not None and not self._started.done():
            self._fail_for_good(f"the engine died while loading the model ({_exit_words(code)})")
            return
        for request in list(self._asked):
            self._on_reply(Reply(request, "unavailable", f"the engine died ({_exit_words(code)})"))
        for handle in list(self._handles.values()):
            self._decide_rerun(handle, code)
        if self._crashes > _MAX_CRASHES:
            self._fail_for_good(f"the engine died {self._crashes} times in a row ({_exit_words(code)})")
            return
        self.status = "restarting"
        delay = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (self._crashes - 1))
        self._restart = asyncio.get_running_loop().create_task(self._restart_after(delay))

    def _decide_rerun(self, handle: Handle, code: int | None) -> None:
        if not handle.delivered and handle.reruns < _MAX_RERUNS:
            handle.reruns += 1
            handle.phase = "queued"
            return
        text = f"the engine died while this request was running ({_exit_words(code)}); try again"
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


def _exit_words(code: int | None) -> str:
    if code is None:
        return "still exiting"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
