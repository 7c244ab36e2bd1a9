"""Makes the context smaller and larger while agents are at work, and gives the GPU's memory back on request.

llama.cpp allocates a context's KV buffer once: only freeing the context returns memory to the driver. So all
KV is parked, the context is freed and made anew, and everyone goes on where they were.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.engine.binding import BindingError, Context, ContextParams, Model, Pooler
from astraea_local.engine.core import EngineCore
from astraea_local.engine.messages import Resized
from astraea_local.engine.model_runner import EngineFault
from astraea_local.scheduler.pressure import ContextState

_logger = logging.getLogger(__name__)


class ResizeRefused(Exception):
    """The context cannot have that size now; the message says why, and what would be possible."""


@dataclass(slots=True)
class Loaded:
    """The model and its context, while they are in memory."""

    model: Model
    context: Context
    pooler: Pooler | None = None
    """Made when somebody wants an embedding."""

    def close(self) -> None:
        """Frees all; contexts before the model that they read."""
        self.free_pooler()
        self.context.close()
        self.model.close()

    def free_pooler(self) -> None:
        """Frees the context for embeddings, which the next one makes anew."""
        if self.pooler is not None:
            self.pooler.close()
            self.pooler = None


class Elastic:
    """The context of a core, in changing sizes; owned by the engine's thread."""

    def __init__(
        self,
        core: EngineCore,
        loaded: Loaded,
        *,
        load_model: Callable[[], Model],
        params_for: Callable[[Model, int, int], ContextParams],
    ) -> None:
        """`params_for(model, size, slots)` may raise `BindingError`, as may `load_model`."""
        self._core = core
        self._loaded = loaded
        self._load_model = load_model
        self._params_for = params_for
        self.size, self.slots = core.profile.context.size, core.scheduler.slots
        self.original = (self.size, self.slots)
        """Cells and slots after pressure: the profile's, until somebody asks for others."""
        self.paused = False

    @property
    def longest(self) -> int:
        """Tokens of the longest context that is running or waiting to."""
        return max((len(run.context) for run in self._core.runs.values()), default=0)

    @property
    def state(self) -> ContextState | None:
        """The sizes, for decisions under pressure; None while the model is unloaded."""
        if self.paused:
            return None
        return ContextState(
            size=self.size,
            original_size=self.original[0],
            slots=self.slots,
            original_slots=self.original[1],
            bytes_per_cell=round(self._core.meter.speeds.kv_token_bytes),
            unified=self._loaded.context.params.unified,
            longest_live_tokens=self.longest,
            in_vram=self._core.offloaded != "none",
        )

    @property
    def now(self) -> Resized:
        """The present sizes."""
        return Resized(self.slots, self.size, self._core.job_limit)

    def resize_for_good(self, size: int, slots: int) -> str:
        """As `resize`, on request: pressure that passes leads back to this size. Raises `ResizeRefused`."""
        done = self.resize(size, slots, "on request")
        self.original = (size, slots)
        return done

    def resize(self, size: int, slots: int, reason: str) -> str:
        """Goes on with so many cells and slots; returns what was done. Raises `ResizeRefused`."""
        core = self._core
        if self.paused:
            raise ResizeRefused("the server is paused: resume it first")
        if (size, slots) == (self.size, self.slots):
            return f"the context has {size:,} cells and {slots} slots already"
        try:
            params = self._params_for(self._loaded.model, size, slots)
        except BindingError as error:
            raise ResizeRefused(str(error)) from None
        each = size if params.unified else size // slots
        if self.longest >= each:
            raise ResizeRefused(
                f"a running job holds {self.longest:,} tokens, and each would have {each:,}: use a larger "
                "size or fewer slots, or wait for it to end"
            )
        began = time.perf_counter()
        before = self._loaded.context.params
        core.detach()
        self._loaded.context.close()
        if size < self.size:
            self._loaded.free_pooler()
        try:
            self._attach(params, size, slots)
        except BindingError as error:
            self._return_to(before, self.size, self.slots)
            raise ResizeRefused(f"{error}; the old size stays") from None
        core.residency.stats.rebuilds += 1
        took = time.perf_counter() - began
        done = f"the context has {size:,} cells and {slots} slots now ({reason}; {1000 * took:.0f} ms)"
        core.log.note("info", done)
        return done

    def pause(self) -> str:
        """Parks all KV and unloads the model; requests wait. Returns what was done."""
        if self.paused:
            return "the server is paused already"
        self._core.detach()
        self._loaded.close()
        self.paused = True
        self._core.log.note("info", "paused: the model is unloaded, its memory is free")
        return "the model is unloaded and its memory is free; requests wait until `resume`"

    def resume(self) -> str:
        """Loads the model and goes on; returns what was done. Raises `ResizeRefused` and stays paused."""
        if not self.paused:
            return "the server is not paused"
        try:
            model = self._load_model()
        except BindingError as error:
            raise ResizeRefused(f"the model cannot be loaded again: {error}") from None
        self._loaded.model = model
        try:
            self._attach(self._params_for(model, self.size, self.slots), self.size, self.slots)
        except BindingError as error:
            model.close()
            raise ResizeRefused(f"{error}; other programs may hold the memory") from None
        self.paused = False
        self._core.log.note("info", "resumed")
        return "the model is loaded again; waiting requests go on"

    def pooler(self, params: ContextParams) -> Pooler:
        """What computes embeddings; made with these `params` if there is none.

        Raises `BindingError` while paused, and when memory does not suffice.
        """
        if self.paused:
            raise BindingError("the server is paused and its model unloaded: resume it first")
        if self._loaded.pooler is None:
            self._loaded.pooler = Pooler(self._loaded.model, params)
            self._core.log.note("info", f"made a context of {params.n_ctx:,} tokens for embeddings")
        return self._loaded.pooler

    def flush(self, timeout_s: float, *, resident: bool = True) -> None:
        """Parks all KV and writes it to disk, within about so many seconds; the core is not used after it.

        Without `resident`, what is in the context is left out: after a fault it may be anything.
        """
        core = self._core
        if resident and not self.paused:
            core.detach()
        store = core.residency.store
        if store.disk is None:
            return
        deadline = time.monotonic() + timeout_s
        store.tick(0.0)
        while store.disk.busy and time.monotonic() < deadline:
            time.sleep(0.005)
            # A part is written only after the one that it hangs from.
            store.tick(0.0)
        store.disk.close(max(0.1, deadline - time.monotonic()))

    def _attach(self, params: ContextParams, size: int, slots: int) -> None:
        context = Context(self._loaded.model, params)
        self._loaded.context = context
        self.size, self.slots = size, slots
        self._core.scheduler.slots = slots
        self._core.attach(context)

    def _return_to(self, params: ContextParams, size: int, slots: int) -> None:
        try:
            self._attach(params, size, slots)
        except BindingError as error:
            # Somebody took the memory in between; a restart makes a new attempt.
            raise EngineFault(f"the context could not be made again: {error}") from None
