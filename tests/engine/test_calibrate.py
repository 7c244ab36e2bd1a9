"""Measuring: fits that find known constants, real calibrations of tiny models, and the meter."""

import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import astuple
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.bench.random_model import ShapeName
from astraea_local.calibration import Calibration, Copies, Layout, PrefillRow, ResidencyRow, StepRow
from astraea_local.engine import calibrate, worker
from astraea_local.engine.binding import Batch, Model
from astraea_local.engine.calibrate import CalibrationError, Order, Progress, run, speeds_of
from astraea_local.engine.messages import Loading
from astraea_local.engine.rounds import Deadline, Rounds, measure_disk
from astraea_local.engine.speed import SpeedMeter, device_of, fit, fit_prefill, fit_steps, measure
from astraea_local.engine.worker import EngineSpec
from astraea_local.profile import Profile, override
from astraea_local.scheduler.speeds import Speeds

SMALL = {"context.size": 512, "context.slots": 2, "model.threads": 1}


def spec_of(path: Path, **changes: Any) -> EngineSpec:
    """A small engine; changes with `__` for the dot."""
    settings = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return EngineSpec(override(Profile(), settings), path)


def quiet(_fraction: float, _what: str) -> None:
    """Reports to nobody."""


# -- fits ------------------------------------------------------------------------------------------

times = st.floats(1e-4, 1e-1)


@given(times, times, st.floats(1e-8, 1e-5))
def test_prefill_constants_are_recovered(base: float, token: float, pair: float) -> None:
    """From exact times, whatever the magnitudes."""
    truth = Speeds(prefill_base_s=base, prefill_token_s=token, prefill_pair_s=pair)
    rows = [(n, past, truth.prefill(n, past)) for past in (0, 64, 512, 1500) for n in (16, 64, 256, 512)]
    assert fit_prefill(rows) == pytest.approx((base, token, pair), rel=1e-3)


@given(times, times, st.floats(1e-7, 1e-4))
def test_step_constants_are_recovered(base: float, segment: float, token: float) -> None:
    """From exact times, whatever the magnitudes."""
    truth = Speeds(step_base_s=base, step_segment_s=segment, step_token_s=token)
    rows = [(n, n * each, truth.decode_step(n, n * each)) for n in (1, 2, 4) for each in (65, 513, 1533)]
    assert fit_steps(rows) == pytest.approx((base, segment, token), rel=1e-3)


@given(times, st.floats(1e-8, 1e-5))
def test_all_constants_together(base: float, idle: float) -> None:
    """`speeds_of` puts every table where it belongs; what is not measured keeps its default."""
    truth = Speeds(prefill_base_s=base, prefill_pair_s=1e-6, step_base_s=base, idle_token_s=idle)
    prefill = [PrefillRow(new=n, past=p, seconds=truth.prefill(n, p)) for p in (0, 999) for n in (16, 256)]
    steps = [
        StepRow(segments=n, tokens=n * e, seconds=truth.decode_step(n, n * e))
        for n in (1, 4)
        for e in (9, 999)
    ]
    alone = truth.decode_step(1, 64)
    residency = [ResidencyRow(idle=count, seconds=alone + count * idle) for count in (0, 3000, 6000)]
    found = speeds_of(prefill, steps, residency, Copies(save=1e9, restore=2e9, disk_read=5.0), 1000.0)
    assert found.idle_token_s == pytest.approx(idle, rel=1e-3)
    assert found.prefill_base_s == pytest.approx(base, rel=1e-3)
    assert found.step_base_s == pytest.approx(base, rel=1e-3)
    assert (found.save_bytes_s, found.restore_bytes_s, found.kv_token_bytes) == (1e9, 2e9, 1000.0)
    assert found.disk_read_bytes_s == Speeds().disk_read_bytes_s


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9999), st.floats(1e-6, 10)), min_size=1))
def test_no_constant_is_negative_or_infinite(rows: list[tuple[int, int, float]]) -> None:
    """Whatever was measured; a prompt token always takes time, and so does a step without context."""
    for found in (fit_prefill(rows), fit_steps(rows)):
        assert all(math.isfinite(value) and value >= 0 for value in found)
        assert any(found)
    assert fit_prefill(rows)[1] > 0
    assert sum(fit_steps(rows)[:2]) > 0


def test_steps_that_seem_to_cost_only_their_context_cost_something_without_it() -> None:
    """A busy moment can make it look so; the rate of an empty server is shown all the same."""
    base, segment, token = fit_steps([(1, 100, 1.0), (1, 200, 2.0), (2, 400, 4.0)])
    assert token == pytest.approx(0.01, rel=0.1)
    assert 0 < base + segment < 0.1


def test_what_the_rows_do_not_show_is_not_made_up() -> None:
    """Contexts of one length say nothing of other lengths, and chunks behind nothing nothing of attention."""
    base, segment, token = fit_steps([(n, 65 * n, 0.01 + 0.02 * n) for n in (1, 2, 4)])
    assert (base, segment, token) == pytest.approx((0.01, 0.02, 0))
    base, each, pair = fit_prefill([(n, 0, 0.01 + 0.005 * n + 1e-6 * n * n) for n in (16, 64, 512)])
    assert pair == 0
    assert each == pytest.approx(0.005, rel=0.1)


def test_relative_errors_count() -> None:
    """A short time that is a tenth off weighs as much as a long one that is."""
    (found,) = fit([(1.0,), (1000.0,)], [1.0, 1500.0])
    assert found == pytest.approx(1.2, rel=0.05)


# -- real calibrations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layouts"),
    [
        ("tiny", {"per_slot", "unified"}),
        ("tiny-swa", {"per_slot", "unified"}),
        ("tiny-recurrent", {"per_slot"}),
        ("tiny-hybrid", {"per_slot"}),
    ],
)
def test_a_model_of_every_class(
    tiny_path: Callable[[ShapeName], Path], tmp_path: Path, shape: ShapeName, layouts: set[Layout]
) -> None:
    """Tables and usable constants in each layout it can have; progress rises to 1."""
    reports: list[float] = []
    found = run(
        spec_of(tiny_path(shape)),
        lambda fraction, _what: reports.append(fraction),
        budget_s=2.0,
        folder=tmp_path,
    )
    assert reports == sorted(reports)
    assert reports[-1] == 1.0
    assert set(found.layouts) == layouts
    assert found.layout == ("unified" if "unified" in layouts else "per_slot")
    assert {row.new for row in found.prefill if row.past == 0} >= {16, 64}
    for times_ in found.layouts.values():
        assert {row.segments for row in times_.steps} == {1, 2}
        assert times_.residency[0].idle == 0
        s = times_.speeds
        assert all(math.isfinite(value) and value >= 0 for value in astuple(s))
        assert min(s.prefill_rate(0), s.prefill_rate(5000), s.decode_step(1, 1), s.kv_token_bytes) > 0
    assert found.copies.disk_write
    assert "1 thread" in found.key.device
    assert 0 <= found.others <= 1
    assert list(tmp_path.iterdir()) == []
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_without_time_only_the_near_points_are_measured(
    tiny_path: Callable[[ShapeName], Path], tmp_path: Path
) -> None:
    """They are enough for constants; what could not be measured keeps its default."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with Model(tiny_path("tiny")) as model:
        order = Order(spec_of(tiny_path("tiny")), 0.0, in_the_way)
        found = calibrate.calibrate(model, order, quiet)
    assert {(row.new, row.past) for row in found.prefill} == {(16, 0), (64, 0), (41, 0), (16, 41)}
    assert found.copies.disk_write is None
    assert {row.segments for row in found.layouts["unified"].steps} == {1, 2}
    assert found.speeds.disk_write_bytes_s == Speeds().disk_write_bytes_s


def test_with_time_the_whole_grid_is_measured(tiny_path: Callable[[ShapeName], Path]) -> None:
    """Every chunk behind every context, and idle tokens up to what the pool holds."""
    spec = spec_of(tiny_path("tiny"), context__size=2048)
    with (
        Model(spec.model_path) as model,
        worker.new_context(model, spec.profile) as context,
        Batch(spec.profile.context.batch) as batch,
    ):
        rounds = Rounds(context, batch, 2, 1024)
        rows = rounds.measure_prefill(Deadline(60), quiet)
        idle = rounds.measure_residency(Deadline(60), quiet)
        steps = rounds.measure_steps(Deadline(60), quiet)
    assert rounds.chunks == [16, 64, 256, 512]
    assert rounds.lengths == [64, 508]
    grid = {(n, p) for n in rounds.chunks for p in (0, 64, 508)}
    assert {(row.new, row.past) for row in rows} == grid | {(508 - 64, 64)}
    assert [row.idle for row in idle] == [0, 508, 3 * 508]
    assert {(row.segments, row.tokens) for row in steps} == {
        (n, n * (e + 1)) for n in (1, 2) for e in (64, 508)
    }


@pytest.mark.parametrize(
    ("slots", "batch", "room"), [(1, 32, 256), (64, 32, 256), (4, 512, 33), (2, 2048, 16)]
)
def test_the_grid_fits(slots: int, batch: int, room: int) -> None:
    """Chunk, context and the steps behind it never need more than a slot has."""
    with Batch(batch) as made:
        rounds = Rounds(None, made, slots, room)  # type: ignore[arg-type]
        assert rounds.chunks == sorted(set(rounds.chunks))
        assert rounds.lengths == sorted(set(rounds.lengths))
        assert min(rounds.chunks) >= 1
        assert max(rounds.chunks) <= batch
        assert max(rounds.chunks) + max(rounds.lengths) <= room


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    """No bandwidth, no error."""
    (tmp_path / "file").write_text("")
    copies = Copies(save=1.0, restore=1.0)
    assert measure_disk(tmp_path / "file", np.zeros(4, dtype=np.uint8), copies) == copies


# -- the child -------------------------------------------------------------------------------------


def dies(_order: Order, connection: Connection) -> None:
    """A child that llama.cpp aborts."""
    connection.send([Progress(0.5, "dying")])
    os.abort()


def goes_back(order: Order, connection: Connection) -> None:
    """A child whose progress is not in order."""
    connection.send([Progress(0.5, "a"), Loading(0.1), Progress(0.2, "b")])
    calibrate.main(order, connection)


def test_the_childs_death_is_reported(tiny_path: Callable[[ShapeName], Path]) -> None:
    """By its signal."""
    with pytest.raises(CalibrationError, match="signal 6"):
        run(spec_of(tiny_path("tiny")), quiet, target=dies)


def test_progress_never_falls(tiny_path: Callable[[ShapeName], Path], tmp_path: Path) -> None:
    """Whatever the child says."""
    seen: list[float] = []
    spec = spec_of(tiny_path("tiny"))
    run(spec, lambda f, _w: seen.append(f), budget_s=0, folder=tmp_path, target=goes_back)
    assert seen == sorted(seen)


def test_what_llama_cpp_refuses_is_said(tiny_path: Callable[[ShapeName], Path], tmp_path: Path) -> None:
    """A broken file, and a context that is too large, name the remedy."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF but nothing more")
    with pytest.raises(CalibrationError, match=r"bad\.gguf"):
        run(spec_of(bad), quiet)
    large = spec_of(tiny_path("tiny"), context__size=1 << 20, kv__layout="per_slot")
    with pytest.raises(CalibrationError, match=r"context\.size to at most"):
        run(large, quiet)


def test_an_interrupt_ends_the_child(tiny_path: Callable[[ShapeName], Path]) -> None:
    """The exception passes through, and `run` has waited for the child."""

    def interrupted(fraction: float, _what: str) -> None:
        if fraction > 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec_of(tiny_path("tiny")), interrupted)
    assert not [p for p in multiprocessing.active_children() if p.name == "calibration"]


def test_the_device_names_cpu_and_threads(tiny_path: Callable[[ShapeName], Path]) -> None:
    """What changes speeds without being a setting."""
    with Model(tiny_path("tiny")) as model:
        one, two = (device_of(model, Profile(), threads) for threads in (1, 2))
    assert one.endswith(", 1 thread")
    assert two.endswith(", 2 threads")
    assert len(one) > len(", 1 thread")


# -- the quick measurement, and the meter ----------------------------------------------------------


@pytest.mark.parametrize("layout", ["per_slot", "unified"])
@pytest.mark.parametrize("shape", ["tiny", "tiny-recurrent"])
def test_the_quick_measurement(
    tiny_path: Callable[[ShapeName], Path], shape: ShapeName, layout: Layout
) -> None:
    """Positive and finite, and the context is empty afterwards."""
    spec = spec_of(tiny_path(shape), kv__layout=layout)
    with Model(spec.model_path) as model, worker.new_context(model, spec.profile) as context:
        with Batch(512) as batch:
            speeds = measure(context, batch, 2)
        assert context.seq_end(0) == context.seq_end(1) == 0
    assert all(math.isfinite(value) and value >= 0 for value in astuple(speeds))
    assert min(speeds.prefill_rate(0), speeds.decode_step(1, 1), speeds.save_bytes_s) > 0
    assert speeds.kv_token_bytes > 0


TRUE = Speeds(
    prefill_base_s=0.01,
    prefill_token_s=0.002,
    prefill_pair_s=1e-6,
    idle_token_s=1e-7,
)


def test_the_meter_follows_decode_steps() -> None:
    """To the observed height, with the shape as it was; prefill stays."""
    meter = SpeedMeter(TRUE)
    for _ in range(200):
        meter.observe(2 * TRUE.decode_step(2, 1000), decoding=2, tokens=1000, prefilled=0)
    s = meter.speeds
    for now, before in (
        (s.step_base_s, TRUE.step_base_s),
        (s.step_segment_s, TRUE.step_segment_s),
        (s.step_token_s, TRUE.step_token_s),
        (s.idle_token_s, TRUE.idle_token_s),
    ):
        assert now / before == pytest.approx(2, rel=1e-3)
    assert s.prefill(100, 100) == TRUE.prefill(100, 100)


def test_the_meter_follows_prefill_beside_decoding() -> None:
    """What the decoding took is not held against prefill; the context behind which it was is known."""
    meter = SpeedMeter(TRUE)
    seconds = TRUE.decode_step(2, 900) + TRUE.prefill(128, 3000) / 2
    for _ in range(200):
        meter.observe(seconds, decoding=2, tokens=900, prefilled=128, past=3000)
    s = meter.speeds
    assert s.prefill(64, 50) == pytest.approx(TRUE.prefill(64, 50) / 2, rel=1e-3)
    assert s.decode_step(2, 900) == TRUE.decode_step(2, 900)


@pytest.mark.parametrize("seconds", [1e-9, 1e4])
def test_one_strange_step_changes_little(seconds: float) -> None:
    """The machine was suspended, or the clock is coarse."""
    meter = SpeedMeter(TRUE)
    meter.observe(seconds, decoding=1, tokens=10, prefilled=0)
    meter.observe(TRUE.decode_step(1, 10) + seconds, decoding=1, tokens=10, prefilled=100)
    assert meter.speeds.decode_step(1, 10) == pytest.approx(TRUE.decode_step(1, 10), rel=0.1)
    assert meter.speeds.prefill(100, 0) == pytest.approx(TRUE.prefill(100, 0), rel=0.1)


def test_the_meter_ignores_what_says_nothing() -> None:
    """Few prompt tokens, empty copies, a step that was shorter than its decoding alone."""
    meter = SpeedMeter(TRUE)
    meter.observe(1.0, decoding=1, tokens=10, prefilled=5)
    meter.observe(1e-6, decoding=1, tokens=10, prefilled=50)
    meter.observe_save(0, 1.0)
    meter.observe_restore(0, 0.0)
    assert meter.speeds == TRUE


def test_the_meter_follows_copies() -> None:
    """Save and restore each on its own."""
    meter = SpeedMeter(TRUE)
    for _ in range(200):
        meter.observe_save(1000, 1e-6)
        meter.observe_restore(3000, 1e-6)
    assert meter.speeds.save_bytes_s == pytest.approx(1e9, rel=0.01)
    assert meter.speeds.restore_bytes_s == pytest.approx(3e9, rel=0.01)
