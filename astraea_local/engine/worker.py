"""The engine's process: loads the model, runs the step loop, talks over a pipe.

The front survives whatever happens here. The process ends when told to, when the front is gone (end of
the pipe), or when llama.cpp aborts it.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from astraea_local import calibration
from astraea_local.calibration import Layout
from astraea_local.engine import loop
from astraea_local.engine.binding import MAX_SEQUENCES as _MAX_SEQUENCES
from astraea_local.engine.binding import (
    BindingError,
    Context,
    ContextParams,
    Model,
    ModelClass,
    Vocab,
    used_gpus,
)
from astraea_local.engine.core import EngineCore
from astraea_local.engine.elastic import Elastic, Loaded
from astraea_local.engine.embedder import Embedder
from astraea_local.engine.experience import Experience
from astraea_local.engine.kv.folder import default_root
from astraea_local.engine.kv.tiers import Tiers, open_tiers
from astraea_local.engine.kv.transfer import Form
from astraea_local.engine.memory import MemoryProbe
from astraea_local.engine.memory_watch import MemoryWatch
from astraea_local.engine.messages import LoadFailed, Loading
from astraea_local.engine.model_runner import EngineFault
from astraea_local.engine.pipe import FrontGone, Pipe
from astraea_local.engine.speed import device_of
from astraea_local.profile import Profile, override

# A clean stop writes parked states to disk for at most so long.
_FLUSH_S = 10.0
# per_slot is chosen by `auto` when it leaves a job at least this much, or all the model was trained for.
_ENOUGH_PER_SLOT = 2048
# What llama.cpp rounds the size of a slot up to.
_LEAST_PER_SLOT = 256
# Sequences per slot in the unified layout: idle jobs stay resident there without holding a slot.
_SEQUENCES_PER_SLOT = 4
# Tokens of one embedding, as at OpenAI; its context takes memory for all of them beside the other one.
_MAX_EMBEDDED = 8192


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a child needs to start."""

    profile: Profile
    model_path: Path
    log_level: int = logging.WARNING


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
            # Samplers hold on to the vocabulary, which must therefore outlive an unloaded model.
            with Model(spec.model_path, vocab_only=True) as tokenizer:
                model = load(spec, pipe)
                loaded = Loaded(model, new_context(model, spec.profile))
                try:
                    serve(spec, loaded, tokenizer.vocab, pipe)
                finally:
                    loaded.close()
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
    if not unified and per_slot < _LEAST_PER_SLOT:
        raise BindingError(
            f"context.size {size} gives each of {slots} slots {per_slot} tokens, and llama.cpp makes none of "
            f"less than {_LEAST_PER_SLOT}: use fewer slots, or set context.size to at least "
            f"{_LEAST_PER_SLOT * slots}"
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
        threads=_threads(profile),
    )


def embedding_params(profile: Profile, model: Model) -> ContextParams:
    """The context in which embeddings are computed; without `pooling` where the model gives none."""
    size = min(model.n_ctx_train, profile.context.size, _MAX_EMBEDDED)
    batch = min(size, profile.context.ubatch)
    return ContextParams(
        # What sees all of its tokens at once cannot be computed in parts.
        n_ctx=size if model.causal else batch,
        n_seq=1,
        n_batch=batch,
        n_ubatch=batch,
        type_k=profile.kv.type_k,
        type_v=profile.kv.type_v,
        flash_attention=profile.model.flash_attention,
        threads=_threads(profile),
        pooling=model.pooling,
    )


def _threads(profile: Profile) -> int:
    return profile.model.threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1


def serve(spec: EngineSpec, loaded: Loaded, vocab: Vocab, pipe: Pipe) -> None:
    """Steps until told to stop. Raises `FrontGone`."""
    profile, model, context = spec.profile, loaded.model, loaded.context
    found = calibration.load(spec.model_path, profile, device_of(model, profile, context.params.threads))
    layout: Layout = "unified" if context.params.unified else "per_slot"
    speeds = None if found is None else found.speeds_in(layout)
    settings = profile.scheduler
    experience = Experience(model.path.stem, profile.prediction, settings.predicted_output_tokens)

    def tiers(form: Form, note: Callable[[str], None]) -> Tiers:
        on_gpu = model.offloaded != "none"
        return open_tiers(profile, spec.model_path, context, form, on_gpu=on_gpu, note=note)

    core = EngineCore(
        model,
        context,
        profile,
        vocab=vocab,
        speeds=speeds,
        predictor=experience.predictor,
        record=experience.record,
        open_tiers=tiers,
    )
    core.log.note("info", _known(speeds is not None, experience.records))
    if (parts := len(core.residency.store.tree)) and core.residency.store.disk is not None:
        core.log.note("info", f"{parts} parked KV states found on disk")
    elastic = Elastic(
        core,
        loaded,
        load_model=lambda: load(spec, pipe),
        params_for=lambda model, size, slots: context_params(
            override(profile, {"context.size": size, "context.slots": slots}),
            model.model_class,
            model.n_ctx_train,
        ),
    )
    embedder = Embedder(elastic, embedding_params(profile, model), model.n_embd)
    folder = core.residency.store.folder or default_root()
    gpus = used_gpus(profile.model.gpu_layers, profile.model.split, profile.model.main_gpu)
    probe = MemoryProbe(gpus, folder, profile.memory.poll_ms / 1000)
    watch = MemoryWatch(probe, profile.memory, model.size_bytes)
    watch.start()
    # Ready by the time that a request needs it, in all likelihood.
    warming = threading.Thread(target=core.guides.warm_up, name="guidance", daemon=True)
    warming.start()
    sound = True
    try:
        loop.run(core, elastic, embedder, watch, experience, pipe, calibrated=speeds is not None)
    except EngineFault:
        sound = False
        raise
    finally:
        watch.close()
        # Also when the front is gone: who starts the server again finds its agents' states.
        elastic.flush(_FLUSH_S, resident=sound)
        experience.close()
        # It reads the vocabulary, which is closed next.
        warming.join()
        core.close()


def _known(calibrated: bool, records: int) -> str:
    speeds = "speeds from the calibration" if calibrated else "speeds measured briefly, no calibration found"
    return f"{speeds}; {records} earlier segments to predict from"
