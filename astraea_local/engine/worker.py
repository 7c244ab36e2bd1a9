"""The engine's process: loads the model, runs the step loop, talks over a pipe.

The front survives whatever happens here. The process ends when told to, when the front is gone (end of
the pipe), or when llama.cpp aborts it.
"""

import contextlib
import gc
import logging
import os
import pickle
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from astraea_local import calibration
from astraea_local.calibration import Layout
from astraea_local.engine.actions import answer
from astraea_local.engine.binding import MAX_SEQUENCES as _MAX_SEQUENCES
from astraea_local.engine.binding import BindingError, Context, ContextParams, Model, ModelClass
from astraea_local.engine.core import EngineCore
from astraea_local.engine.experience import Experience
from astraea_local.engine.frames import FrameBuilder
from astraea_local.engine.messages import (
    AskJob,
    Cancel,
    EndJob,
    Frame,
    JobAction,
    LoadFailed,
    Loading,
    PauseScheduling,
    Ready,
    SetPolicy,
    Stop,
    Submit,
    ToEngine,
    ToFront,
)
from astraea_local.engine.speed import device_of
from astraea_local.profile import Profile

_logger = logging.getLogger(__name__)

_FRAME_S = 0.25
_IDLE_S = 1.0
# per_slot is chosen by `auto` when it leaves a job at least this much, or all the model was trained for.
_ENOUGH_PER_SLOT = 2048
# Sequences per slot in the unified layout: idle jobs stay resident there without holding a slot.
_SEQUENCES_PER_SLOT = 4


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a child needs to start."""

    profile: Profile
    model_path: Path
    log_level: int = logging.WARNING


class FrontGone(Exception):
    """The other end of the pipe is closed."""


class Pipe:
    """Lists of messages over a `multiprocessing` connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, messages: list[ToFront]) -> None:
        """Sends all at once. Raises `FrontGone`."""
        if messages:
            try:
                self._connection.send_bytes(pickle.dumps(messages, protocol=pickle.HIGHEST_PROTOCOL))
            except OSError:
                raise FrontGone from None

    def receive(self, wait_s: float) -> list[ToEngine]:
        """Everything that has arrived, after waiting for at most `wait_s`. Raises `FrontGone`."""
        received: list[ToEngine] = []
        try:
            while self._connection.poll(0 if received else wait_s):
                received.extend(pickle.loads(self._connection.recv_bytes()))  # noqa: S301 - our own child
        except (EOFError, OSError):
            raise FrontGone from None
        return received


def main(spec: EngineSpec, connection: Connection) -> None:
    """Entry of the child process."""
    # Ctrl-C reaches the whole terminal group; the front decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    logging.basicConfig(level=spec.log_level, format="engine: %(levelname)s %(name)s: %(message)s")
    pipe = Pipe(connection)
    with contextlib.suppress(FrontGone):
        try:
            with load(spec, pipe) as model, new_context(model, spec.profile) as context:
                serve(spec, model, context, pipe)
        except BindingError as error:
            pipe.send([LoadFailed(str(error))])


def load(spec: EngineSpec, pipe: Pipe) -> Model:
    """Loads the model, reporting progress in hundredths. Raises `BindingError`."""
    last = -1

    def report(fraction: float) -> None:
        nonlocal last
        if int(fraction * 100) > last:
            last = int(fraction * 100)
            pipe.send([Loading(fraction)])

    settings = spec.profile.model
    model = Model(
        spec.model_path,
        gpu_layers=settings.gpu_layers,
        main_gpu=settings.main_gpu,
        split=settings.split,
        on_progress=report,
    )
    if model.has_encoder:
        raise BindingError(
            f"{spec.model_path}: encoder-decoder models are not supported; use a decoder model"
        )
    return model


def new_context(model: Model, profile: Profile) -> Context:
    """The context of the profile's settings. Raises `BindingError` naming the field to change."""
    return Context(model, context_params(profile, model.model_class, model.n_ctx_train))


def context_params(profile: Profile, model_class: ModelClass, n_ctx_train: int) -> ContextParams:
    """Layout and sizes for this model. Raises `BindingError` when they make no sense for it."""
    size, slots = profile.context.size, profile.context.slots
    per_slot = size // slots
    unified = profile.kv.layout == "unified" or (
        profile.kv.layout == "auto" and per_slot < min(_ENOUGH_PER_SLOT, n_ctx_train)
    )
    if model_class in (ModelClass.RECURRENT, ModelClass.HYBRID):
        # Their state is one block for each sequence: a shared pool would gain nothing.
        unified = False
    if not unified and per_slot > n_ctx_train:
        raise BindingError(
            f"context.size {size} gives each of {slots} slots {per_slot} tokens, but the model was trained "
            f"for {n_ctx_train}: set context.size to at most {n_ctx_train * slots}"
        )
    return ContextParams(
        n_ctx=size,
        n_seq=min(_MAX_SEQUENCES, slots * _SEQUENCES_PER_SLOT) if unified else slots,
        n_batch=profile.context.batch,
        n_ubatch=profile.context.ubatch,
        unified=unified,
        type_k=profile.kv.type_k,
        type_v=profile.kv.type_v,
        flash_attention=profile.model.flash_attention,
        threads=profile.model.threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1,
    )


def serve(spec: EngineSpec, model: Model, context: Context, pipe: Pipe) -> None:
    """Steps until told to stop. Raises `FrontGone`."""
    profile = spec.profile
    found = calibration.load(spec.model_path, profile, device_of(model, profile, context.params.threads))
    layout: Layout = "unified" if context.params.unified else "per_slot"
    speeds = None if found is None else found.speeds_in(layout)
    settings = profile.scheduler
    experience = Experience(model.path.stem, profile.prediction, settings.predicted_output_tokens)
    core = EngineCore(
        model,
        context,
        profile,
        speeds=speeds,
        predictor=experience.predictor,
        record=experience.record,
    )
    core.note("info", _known(speeds is not None, experience.records))
    try:
        _loop(core, experience, pipe, calibrated=speeds is not None)
    finally:
        experience.close()
        core.close()


def _known(calibrated: bool, records: int) -> str:
    speeds = "speeds from the calibration" if calibrated else "speeds measured briefly, no calibration found"
    return f"{speeds}; {records} earlier segments to predict from"


def _loop(core: EngineCore, experience: Experience, pipe: Pipe, *, calibrated: bool) -> None:
    frames = FrameBuilder(core)
    info = frames.server_info()
    pipe.send(
        [
            Ready(
                model=info.model,
                model_class=info.model_class,
                offloaded=info.offloaded,
                layout=info.layout,
                slots=info.slots,
                context=info.context,
                job_context=info.job_context,
                pid=info.pid,
                calibrated=calibrated,
            ),
            Frame(frames.build().model_dump_json().encode()),
        ]
    )
    # What exists now stays: collections in the middle of a step need not look at it again.
    gc.collect()
    gc.freeze()
    next_frame = 0.0
    was_busy = False
    while True:
        out: list[ToFront] = []
        for message in pipe.receive(0 if core.busy else _IDLE_S):
            match message:
                case Submit():
                    core.submit(message)
                case Cancel():
                    core.cancel(message)
                case EndJob():
                    core.end_job(message)
                case SetPolicy(name):
                    core.set_policy(name)
                case JobAction() | PauseScheduling() | AskJob():
                    out.append(answer(core, message))
                    # What was done is seen in the very next frame.
                    next_frame = 0.0 if not isinstance(message, AskJob) else next_frame
                case Stop():
                    return
        if core.busy:
            core.step()
        out += core.take_messages()
        now = time.monotonic()
        # Becoming idle is shown at once: the next look may be a second away.
        if now >= next_frame or (was_busy and not core.busy):
            core.forget_old_jobs()
            if (line := experience.tick(now, busy=core.busy)) is not None:
                core.note("info", line)
            out.append(Frame(frames.build().model_dump_json().encode()))
            next_frame = now + _FRAME_S
        was_busy = core.busy
        pipe.send(out)
