"""`calibrate`: measures a model on this machine with care, in a child process that llama.cpp may abort."""

import contextlib
import logging
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import platformdirs
import psutil

from astraea_local import calibration as store
from astraea_local.calibration import (
    Calibration,
    Copies,
    Layout,
    LayoutTimes,
    PrefillRow,
    ResidencyRow,
    StepRow,
)
from astraea_local.engine import worker
from astraea_local.engine.binding import Batch, BindingError, Context, Model
from astraea_local.engine.libc import tuned
from astraea_local.engine.messages import LoadFailed, Loading
from astraea_local.engine.pipe import Pipe
from astraea_local.engine.rounds import Deadline, Report, Rounds, measure_disk
from astraea_local.engine.speed import device_of, fit, fit_prefill, fit_steps
from astraea_local.engine.worker import EngineSpec
from astraea_local.profile import Profile, override
from astraea_local.scheduler.speeds import Speeds

# Shares of the time; what a part leaves over goes to those after it.
_PREFILL, _LAYOUT, _COPIES = 0.5, 0.2, 0.1
# How much of the progress bar loading is.
_LOADING = 0.1


class CalibrationError(Exception):
    """The calibration could not be made; the message is fit for a user."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the child is, 0..1, and what it is doing."""

    fraction: float
    what: str


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is asked to measure."""

    spec: EngineSpec
    budget_s: float
    folder: Path
    """Whose disk is measured."""


def run(
    spec: EngineSpec,
    on_progress: Report,
    *,
    budget_s: float = store.BUDGET_S,
    folder: Path | None = None,
    target: Callable[[Order, Connection], None] | None = None,
) -> Calibration:
    """Calibrates in a child process; takes about `budget_s` and the time to load the model.

    `on_progress` gets fractions that never fall and end at 1. The disk is measured in `folder`, by default
    the cache folder. `target` runs in the child. However this ends, the child has ended too. Raises
    `CalibrationError`.
    """
    order = Order(spec, budget_s, folder or platformdirs.user_cache_path("astraea-local"))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target or main, args=(order, theirs), name="calibration", daemon=True)
    try:
        with tuned():
            process.start()
        theirs.close()
        return _follow(ours, on_progress)
    except EOFError:
        process.join()
        code = process.exitcode or 0
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise CalibrationError(f"the process that measures died ({words})") from None
    finally:
        if process.pid is not None:  # else it was interrupted before it had started
            process.kill()
            process.join()
        ours.close()


def _follow(connection: Connection, on_progress: Report) -> Calibration:
    """What the child measured, when it is done. Raises `CalibrationError`, and `EOFError` when it died."""
    reached = 0.0
    while True:
        try:
            messages = connection.recv()
        except OSError:  # how a socket tells that the other end is gone depends on what was under way
            raise EOFError from None
        # Lists, because `worker.load` reports in lists.
        for message in messages:
            match message:
                case Loading(fraction):
                    reached = max(reached, _LOADING * fraction)
                    on_progress(reached, "loading the model")
                case Progress(fraction, what):
                    reached = max(reached, _LOADING + (1 - _LOADING) * fraction)
                    on_progress(reached, what)
                case LoadFailed(text):
                    raise CalibrationError(text)
                case Calibration():
                    on_progress(1.0, "done")
                    return message


def main(order: Order, connection: Connection) -> None:
    """Entry of the child process."""
    # Ctrl-C reaches the whole terminal group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    logging.basicConfig(level=order.spec.log_level, format="calibration: %(levelname)s %(name)s: %(message)s")
    # A closed pipe means that nobody waits for this any more.
    with contextlib.suppress(BrokenPipeError):
        try:
            with worker.load(order.spec, Pipe(connection)) as model:
                found = calibrate(
                    model,
                    order,
                    lambda fraction, what: connection.send([Progress(fraction, what)]),
                )
            connection.send([found])
        except BindingError as error:
            connection.send([LoadFailed(str(error))])


def calibrate(model: Model, order: Order, report: Report) -> Calibration:
    """Measures everything; `report` gets rising fractions, without the final 1. Raises `BindingError`."""
    began, load = time.perf_counter(), _CpuLoad()
    spec, profile = order.spec, order.spec.profile
    parts = _Parts(order.budget_s, report)
    tables: dict[Layout, tuple[list[StepRow], list[ResidencyRow]]] = {}

    with worker.new_context(model, profile) as context, Batch(profile.context.batch) as batch:
        own: Layout = "unified" if context.params.unified else "per_slot"
        threads = context.params.threads
        rounds = _rounds(model, context, batch, profile.context.slots)
        prefill = rounds.measure_prefill(*parts.next(_PREFILL))
        tables[own] = _measure_layout(rounds, *parts.next(_LAYOUT))
        copies = rounds.measure_copies()
        longest = rounds.states[-1]

    deadline, tell = parts.next(_LAYOUT)
    other: Layout = "per_slot" if own == "unified" else "unified"
    with _context_in(model, profile, other) as context_or_none:
        if context_or_none is not None:
            with Batch(profile.context.batch) as batch:
                rounds = _rounds(model, context_or_none, batch, profile.context.slots)
                rounds.fill(prefill, deadline, tell)
                tables[other] = _measure_layout(rounds, deadline, tell)

    _deadline, tell = parts.next(_COPIES)
    tell(0.0, f"writing to {order.folder}")
    copies = measure_disk(order.folder, longest.data, copies)
    layouts = {
        layout: LayoutTimes(
            steps=tuple(steps),
            residency=tuple(residency),
            speeds=speeds_of(prefill, steps, residency, copies, len(longest.data) / longest.tokens),
        )
        for layout, (steps, residency) in tables.items()
    }
    return Calibration(
        key=store.key_of(spec.model_path, profile, device_of(model, profile, threads)),
        model=spec.model_path.name,
        taken_at=time.time(),
        took_s=time.perf_counter() - began,
        others=load.of_others(),
        layout=own,
        prefill=tuple(prefill),
        layouts=layouts,
        copies=copies,
        prefill_error=_prefill_error(prefill, layouts[own].speeds),
        step_error=_step_error(layouts),
    )


class _CpuLoad:
    """What the processors do from now on."""

    def __init__(self) -> None:
        self._start = self._read()

    def of_others(self) -> float:
        """Share of the machine's CPU time since then that other processes used, 0..1."""
        total, idle, own = (now - before for now, before in zip(self._read(), self._start, strict=True))
        return min(1.0, max(0.0, (total - idle - own) / max(total, 1e-9)))

    @staticmethod
    def _read() -> tuple[float, float, float]:
        machine, process = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return sum(machine), idle, process.user + process.system


class _Parts:
    """Deals out the time and the progress bar to the parts of a calibration, one after another."""

    def __init__(self, budget_s: float, report: Report) -> None:
        self._budget_s = budget_s
        self._report = report
        self._started = time.perf_counter()
        self._used = 0.0

    def next(self, share: float) -> tuple[Deadline, Report]:
        """The next part's end, and its own report from 0 to 1."""
        low, self._used = self._used, self._used + share
        high = self._used
        gone = time.perf_counter() - self._started

        def report(fraction: float, what: str) -> None:
            self._report(low + (high - low) * fraction, what)

        return Deadline(max(0.0, high * self._budget_s - gone)), report


def _rounds(model: Model, context: Context, batch: Batch, slots: int) -> Rounds:
    return Rounds(context, batch, slots, min(context.n_ctx // slots, model.n_ctx_train))


def _measure_layout(
    rounds: Rounds, deadline: Deadline, report: Report
) -> tuple[list[StepRow], list[ResidencyRow]]:
    stepping = Deadline(deadline.left * 2 / 3)
    return rounds.measure_steps(stepping, report), rounds.measure_residency(deadline, report)


@contextlib.contextmanager
def _context_in(model: Model, profile: Profile, layout: Layout) -> Iterator[Context | None]:
    """A context in that layout; None when this model cannot have it."""
    profile = override(profile, {"kv.layout": layout})
    try:
        params = worker.context_params(profile, model.model_class, model.n_ctx_train)
        context = Context(model, params) if params.unified == (layout == "unified") else None
    except BindingError:
        context = None
    if context is None:
        yield None
        return
    with context:
        yield context


def speeds_of(
    prefill: list[PrefillRow],
    steps: list[StepRow],
    residency: list[ResidencyRow],
    copies: Copies,
    kv_token_bytes: float,
) -> Speeds:
    """The constants that come closest to the tables; what was not measured keeps its default."""
    prefill_base, prefill_token, pair = fit_prefill([(r.new, r.past, r.seconds) for r in prefill])
    step_base, segment, token = fit_steps([(r.segments, r.tokens, r.seconds) for r in steps])
    _alone, idle = fit([(1.0, r.idle) for r in residency], [r.seconds for r in residency])
    speeds = Speeds(
        prefill_base_s=prefill_base,
        prefill_token_s=prefill_token,
        prefill_pair_s=pair,
        step_base_s=step_base,
        step_segment_s=segment,
        step_token_s=token,
        idle_token_s=idle,
        save_bytes_s=copies.save,
        restore_bytes_s=copies.restore,
        kv_token_bytes=kv_token_bytes,
    )
    if copies.disk_write is not None and copies.disk_read is not None:
        speeds = replace(speeds, disk_write_bytes_s=copies.disk_write, disk_read_bytes_s=copies.disk_read)
    return speeds


def _prefill_error(rows: list[PrefillRow], speeds: Speeds) -> float:
    return statistics.median(abs(speeds.prefill(row.new, row.past) / row.seconds - 1) for row in rows)


def _step_error(layouts: dict[Layout, LayoutTimes]) -> float:
    return statistics.median(
        abs(times.speeds.decode_step(row.segments, row.tokens) / row.seconds - 1)
        for times in layouts.values()
        for row in times.steps
    )
