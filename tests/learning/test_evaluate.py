"""The comparison of both predictors."""

from dataclasses import replace

import numpy as np
import pytest

from astraea_local.history import SegmentRecord
from astraea_local.learning import evaluate as module
from astraea_local.learning.dataset import build
from astraea_local.learning.evaluate import (
    CALIBRATED,
    LEVELS,
    MIN_ROWS,
    Report,
    TargetReport,
    evaluate,
    pinball,
)
from astraea_local.scheduler.learned import OUTPUT_FEATURES, WAIT_FEATURES, Array, LearnedModel, LearnedPair
from tests.learning.histories import SEGMENT, history


def constant(quantiles: Array, features: int) -> LearnedModel:
    """A model that always predicts these logarithms."""
    steps = np.maximum(np.diff(quantiles), 1e-9)
    return LearnedModel(
        {
            "center": np.zeros(features),
            "scale": np.ones(features),
            "w1": np.zeros((features, 1)),
            "b1": np.zeros(1),
            "w2": np.zeros((1, 1)),
            "b2": np.zeros(1),
            "w3": np.zeros((1, len(LEVELS))),
            "b3": np.array([quantiles[0], *np.log(np.expm1(steps))]),
            "linear": np.zeros((features, len(LEVELS))),
            "bounds": np.array([-50.0, 50.0]),
            "levels": np.array(LEVELS),
        }
    )


def test_pinball_by_hand() -> None:
    quantiles = np.zeros((2, len(LEVELS)))
    above, below = pinball(np.array([2.0, -1.0]), quantiles)
    assert above == pytest.approx(2.0 * np.mean(LEVELS))
    assert below == pytest.approx(1.0 - np.mean(LEVELS))


def test_true_quantiles_have_the_least_loss() -> None:
    targets = np.random.default_rng(0).normal(size=5000)
    true = np.quantile(targets, LEVELS)
    best = pinball(targets, np.tile(true, (5000, 1))).mean()
    for wrong in (true + 0.2, true - 0.2, true * 1.3, true * 0.7):
        assert pinball(targets, np.tile(wrong, (5000, 1))).mean() > best


def test_levels_hold_those_that_are_counted() -> None:
    assert list(LEVELS) == sorted(LEVELS)
    assert set(CALIBRATED) < set(LEVELS)


def test_too_few_rows_are_not_compared() -> None:
    records = history(MIN_ROWS - 1, 1)
    report = evaluate(records, build(records), "model", None)
    assert report == Report("model", TargetReport("output", MIN_ROWS - 1), TargetReport("wait", 0))
    assert not any(target.wins for target in report.targets)


def test_without_models_only_the_empirical_side_is_known() -> None:
    records = history(100, 4)
    report = evaluate(records, build(records), None, None)
    for target, rows in zip(report.targets, (400, 300), strict=True):
        assert target.rows == rows
        assert target.empirical is not None
        assert 0 < target.empirical.loss < 1
        assert target.learned is None
        assert not target.wins


def test_the_empirical_side_is_calibrated_on_noise() -> None:
    records = history(1000, 1)
    empirical = evaluate(records, build(records), None, None).output.empirical
    assert empirical is not None
    assert empirical.below == pytest.approx(CALIBRATED, abs=0.08)


def test_the_empirical_side_knows_only_what_came_before() -> None:
    """Outputs that grow without end are always longer than what was seen."""
    records = [
        replace(SEGMENT, job=str(n), arrived=2.0 * n, output_tokens=round(10 * 1.02**n)) for n in range(300)
    ]
    empirical = evaluate(records, build(records), None, None).output.empirical
    assert empirical is not None
    assert empirical.below[2] < 0.2


def drifted() -> list[SegmentRecord]:
    """Outputs around 1000 tokens, and in the held-out part around 100."""
    records = history(300, 1, output=lambda rng, _: rng.lognormvariate(0.0, 0.5))
    medians = [1000] * 240 + [100] * 60
    return [
        replace(record, output_tokens=round(median * (1 + record.output_tokens / 10)))
        for record, median in zip(records, medians, strict=True)
    ]


def compared(shift: float = 0.0) -> TargetReport:
    """A model that predicts the second median, or e to the shift of it."""
    records = drifted()
    model = constant(np.log(100.0) + shift + np.linspace(0, 0.3, len(LEVELS)), len(OUTPUT_FEATURES))
    return evaluate(records, build(records), None, LearnedPair(output=model)).output


def lead(found: TargetReport) -> float:
    assert found.learned is not None
    assert found.empirical is not None
    return 1 - found.learned.loss / found.empirical.loss


def test_a_model_wins_when_its_loss_is_lower() -> None:
    assert lead(compared()) > 0.3
    assert compared().wins
    assert lead(compared(5.0)) < 0
    assert not compared(5.0).wins


def test_a_lead_within_the_margin_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    margin = lead(compared())
    monkeypatch.setattr(module, "MARGIN", margin - 0.01)
    assert compared().wins
    monkeypatch.setattr(module, "MARGIN", margin + 0.01)
    assert not compared().wins


def test_a_lead_that_may_be_luck_does_not_count() -> None:
    """Quantiles of the very rows lead, but not by more than chance would explain."""
    records = history(400, 1)
    dataset = build(records)
    model = constant(np.quantile(dataset.outputs.split()[2].targets, LEVELS), len(OUTPUT_FEATURES))
    found = evaluate(records, dataset, None, LearnedPair(output=model)).output
    assert lead(found) > module.MARGIN
    assert not found.wins


def test_waits_are_judged_in_seconds_from_a_millisecond_on() -> None:
    records = history(150, 3, wait=lambda rng, _: 1e-5 * rng.random())
    dataset = build(records)
    assert set(dataset.waits.targets) == {np.log(1e-3)}
    model = constant(np.full(len(LEVELS), -20.0), len(WAIT_FEATURES))
    found = evaluate(records, dataset, None, LearnedPair(wait=model)).wait
    assert found.learned is not None
    assert found.learned.loss == pytest.approx(0.0)
    assert found.learned.below == (1.0, 1.0, 1.0)
