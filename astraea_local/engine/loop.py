"""The engine's loop: takes messages in, steps, and tells the front what happened."""

import gc
import time

from astraea_local.engine.actions import act
from astraea_local.engine.core import EngineCore
from astraea_local.engine.elastic import Elastic, ResizeRefused
from astraea_local.engine.embedder import Embedder
from astraea_local.engine.experience import Experience
from astraea_local.engine.frames import FrameBuilder
from astraea_local.engine.memory_watch import MemoryWatch
from astraea_local.engine.messages import (
    AskJob,
    Cancel,
    Embed,
    EndJob,
    Frame,
    JobAction,
    Note,
    PauseScheduling,
    Ready,
    Reply,
    Resize,
    SetPolicy,
    SimulatePressure,
    Stop,
    Submit,
    Suspend,
    ToFront,
    ToolCalled,
    Withdraw,
)
from astraea_local.engine.pipe import Pipe
from astraea_local.scheduler.pressure import Amount

_FRAME_S = 0.25
_IDLE_S = 1.0
# While the disk works or idle states are being copied, and nothing runs.
_MOVING_S = 0.01


def run(
    core: EngineCore,
    elastic: Elastic,
    embedder: Embedder,
    watch: MemoryWatch,
    experience: Experience,
    pipe: Pipe,
    *,
    calibrated: bool,
) -> None:
    """Serves until told to stop; `calibrated` is told to the front. Raises `FrontGone`, `EngineFault`."""
    frames = FrameBuilder(core, watch)
    info = frames.server_info()
    ready = Ready(
        model=info.model,
        model_class=info.model_class,
        offloaded=info.offloaded,
        layout=info.layout,
        slots=info.slots,
        context=info.context,
        job_context=info.job_context,
        pid=info.pid,
        calibrated=calibrated,
        embedding_size=embedder.size,
        embedding_tokens=embedder.tokens,
    )
    # The first frame knows the memory too.
    changed = relieve(core, elastic, watch, time.monotonic())
    pipe.send([ready, *changed, Frame(frames.build().model_dump_json().encode())])
    # What exists now stays: collections in the middle of a step need not look at it again.
    gc.collect()
    gc.freeze()
    next_frame = 0.0
    was_busy, idle = False, True
    while True:
        wait_s = 0 if core.busy or embedder.busy else _IDLE_S if idle else _MOVING_S
        for message in pipe.receive(wait_s):
            match message:
                case Submit():
                    core.submit(message)
                case Cancel():
                    core.cancel(message)
                case EndJob():
                    core.end_job(message)
                case ToolCalled(job, tool):
                    core.tool_called(job, tool)
                case Note(job, text):
                    core.note_job(job, text)
                case SetPolicy(name):
                    core.dispatcher.set_policy(name)
                case SimulatePressure(reading):
                    watch.simulate(reading)
                case Resize() | Suspend():
                    pipe.send(answer(message, elastic))
                case Embed():
                    embedder.ask(message)
                case Withdraw(request):
                    embedder.withdraw(request)
                case JobAction() | PauseScheduling() | AskJob():
                    pipe.send([act(core, message)])
                case Stop():
                    return
        if core.busy:
            core.step()
        idle = core.busy or not core.idle()
        out = core.take_messages()
        if embedder.busy and (reply := embedder.step()) is not None:
            out.append(reply)
        now = time.monotonic()
        out += relieve(core, elastic, watch, now)
        # Becoming idle is shown at once: the next look may be a second away.
        if now >= next_frame or (was_busy and not core.busy):
            core.forget_old_jobs()
            if (line := experience.tick(now, busy=core.busy)) is not None:
                core.log.note("info", line)
            out.append(Frame(frames.build().model_dump_json().encode()))
            next_frame = now + _FRAME_S
        was_busy = core.busy
        pipe.send(out)


def answer(question: Resize | Suspend, elastic: Elastic) -> list[ToFront]:
    """Does what was asked for; says what was done and what changed by it."""
    try:
        match question:
            case Resize(_, size, slots):
                text = elastic.resize_for_good(size, slots)
            case Suspend(_, on):
                text = elastic.pause() if on else elastic.resume()
    except ResizeRefused as error:
        return [Reply(question.request, "refused", str(error))]
    return [elastic.now, Reply(question.request, "done", text)]


def relieve(core: EngineCore, elastic: Elastic, watch: MemoryWatch, now: float) -> list[ToFront]:
    """Looks at the memory, and gives back or takes what the pressure asks for."""
    table = None if elastic.paused else core.table
    cells = None if table is None else Amount(table.cells_total, table.cells_total - table.cells_used)
    change = watch.tick(now, cells, elastic.state)
    if watch.labels != core.levels:
        core.pressure_changed(watch.labels)
    if change is None:
        return []
    try:
        elastic.resize(change.size, change.slots, change.reason)
    except ResizeRefused as error:
        core.log.note("warning", f"the context keeps its size: {error}")
        return []
    return [elastic.now]
