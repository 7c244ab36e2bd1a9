"""The trained model as the scheduler uses it: evaluation and features, without torch."""

import math
from timeit import repeat
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from astraea_local.scheduler import learned
from astraea_local.scheduler.learned import (
    OUTPUT_FEATURES,
    WAIT_FEATURES,
    Array,
    LearnedModel,
    Statistics,
)

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
FEATURES, HIDDEN = 4, 5
SHAPES: dict[str, tuple[int, ...]] = {
    "center": (FEATURES,),
    "scale": (FEATURES,),
    "w1": (FEATURES, HIDDEN),
    "b1": (HIDDEN,),
    "w2": (HIDDEN, HIDDEN),
    "b2": (HIDDEN,),
    "w3": (HIDDEN, len(LEVELS)),
    "b3": (len(LEVELS),),
    "linear": (FEATURES, len(LEVELS)),
    "bounds": (2,),
}

names = st.sampled_from(["", "a", "b"])
tools = st.sampled_from(["", "bash", "bash:ls", "bash:pytest", "search"])
seconds = st.floats(0, 1e4)
tokens = st.integers(0, 100_000)


def arrays(**changes: Any) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {**made, "bounds": np.array([-5.0, 9.0]), "levels": np.array(LEVELS), **changes}


@st.composite
def any_arrays(draw: st.DrawFn) -> dict[str, Array]:
    values = st.floats(-1e6, 1e6)
    made = {name: draw(hnp.arrays(np.float64, shape, elements=values)) for name, shape in SHAPES.items()}
    return {**made, "levels": np.array(LEVELS)}


@given(any_arrays(), st.lists(st.floats(-1e9, 1e9), min_size=FEATURES, max_size=FEATURES))
def test_quantiles_never_cross(weights: dict[str, Array], features: list[float]) -> None:
    found = LearnedModel(weights).predict(features)
    assert list(found.points) == sorted(found.points)
    assert len(found.points) == len(LEVELS)
    assert math.fsum(found.weights) == pytest.approx(1.0)
    assert all(0 < point < math.inf for point in found.points)


def test_points_are_the_quantiles_of_their_levels() -> None:
    model = LearnedModel(arrays())
    assert model.feature_count == FEATURES
    found = model.predict([0.1, -0.2, 0.3, 0.4])
    assert [found.quantile(level) for level in LEVELS] == list(found.points)


def test_the_network_is_what_it_is_documented_to_be() -> None:
    a = arrays(bounds=np.array([-50.0, 50.0]))
    features = np.array([0.5, -1.0, 2.0, 90.0])
    x = np.clip((features - a["center"]) * a["scale"], -4, 4)
    hidden = np.tanh(np.tanh(x @ a["w1"] + a["b1"]) @ a["w2"] + a["b2"])
    out = hidden @ a["w3"] + x @ a["linear"] + a["b3"]
    logs = np.cumsum([out[0], *np.log1p(np.exp(out[1:]))])
    assert LearnedModel(a).predict(features.tolist()).points == pytest.approx(np.exp(logs).tolist())


def test_predictions_stay_within_the_bounds() -> None:
    low = LearnedModel(arrays(b3=np.full(len(LEVELS), -1e5), bounds=np.array([1.0, 2.0])))
    high = LearnedModel(arrays(b3=np.full(len(LEVELS), 1e5), bounds=np.array([1.0, 2.0])))
    assert set(low.predict([0.0] * FEATURES).points) == {math.exp(1.0)}
    assert set(high.predict([0.0] * FEATURES).points) == {math.exp(2.0)}


@pytest.mark.parametrize(
    "changes",
    [
        {"w1": np.zeros((FEATURES, HIDDEN + 1))},
        {"w2": np.zeros(HIDDEN)},
        {"bounds": np.zeros(3)},
        {"b1": np.float64(1.0)},
        {"b3": np.full(len(LEVELS), np.nan)},
        {"center": np.full(FEATURES, 1e9)},
        {"levels": np.array(LEVELS[::-1])},
        {"levels": np.array([0.0, *LEVELS[1:]])},
        {"levels": np.array([*LEVELS[:-1], 1.0])},
        {
            "levels": np.zeros(0),
            "b3": np.zeros(0),
            "w3": np.zeros((HIDDEN, 0)),
            "linear": np.zeros((FEATURES, 0)),
        },
        {"b2": np.array(["a"] * HIDDEN)},
    ],
)
def test_what_is_no_model_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a trained model"):
        LearnedModel(arrays(**changes))


def test_an_array_that_is_missing_is_named() -> None:
    made = arrays()
    del made["linear"]
    with pytest.raises(ValueError, match="linear"):
        LearnedModel(made)


@pytest.mark.parametrize("count", [0, 1, FEATURES + 1])
def test_another_number_of_features_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="features"):
        LearnedModel(arrays()).predict([0.0] * count)


def test_a_prediction_is_cheap() -> None:
    rng = np.random.default_rng(0)
    features, hidden, levels = len(WAIT_FEATURES), 32, np.linspace(0.05, 0.95, 21)
    sizes = {FEATURES: features, HIDDEN: hidden, len(LEVELS): len(levels), 2: 2}
    made = {name: rng.normal(size=[sizes[n] for n in shape]) for name, shape in SHAPES.items()}
    model = LearnedModel({**made, "levels": levels})
    row = [0.5] * features
    # 14 microseconds on an idle core; the limit is for a shared one.
    assert min(repeat(lambda: model.predict(row), number=100, repeat=20)) / 100 < 200e-6


Event = tuple[str, str, str, int, float]
events = st.lists(st.tuples(names, st.sampled_from("jkl"), tools, tokens, seconds), max_size=40)


def fed(seen: list[Event]) -> Statistics:
    statistics = Statistics()
    for kind, job, tool, output, wait in seen:
        statistics.observe_segment(kind, job, output)
        statistics.observe_wait(kind, job, tool, wait)
    return statistics


def outputs(statistics: Statistics, kind: str = "a", job: str = "j") -> dict[str, float]:
    features = statistics.output_features(kind, job, prompt_tokens=1000, new_tokens=50, max_output=512)
    return dict(zip(OUTPUT_FEATURES, features, strict=True))


def waits(statistics: Statistics, kind: str = "a", job: str = "j", tool: str = "bash:ls") -> dict[str, float]:
    return dict(zip(WAIT_FEATURES, statistics.wait_features(kind, job, tool), strict=True))


@given(events)
def test_features_are_finite_and_asking_changes_nothing(seen: list[Event]) -> None:
    statistics = fed(seen)
    first = outputs(statistics), waits(statistics), waits(statistics, "z", "z", "z:z")
    assert all(math.isfinite(value) for features in first for value in features.values())
    assert first == (outputs(statistics), waits(statistics), waits(statistics, "z", "z", "z:z"))


@given(events)
def test_means_lie_between_what_was_seen_and_the_prior(seen: list[Event]) -> None:
    lengths = [math.log(max(1, output)) for *_, output, _ in seen] + [math.log(80)]
    times = [math.log(max(1e-3, wait)) for *_, wait in seen] + [math.log(0.3)]
    statistics = fed(seen)
    for features, values in ((outputs(statistics), lengths), (waits(statistics), times)):
        for name, value in features.items():
            if name.startswith("mean"):
                assert min(values) - 1e-9 <= value <= max(values) + 1e-9


def test_nothing_seen_gives_the_prior_and_what_the_request_says() -> None:
    found = outputs(Statistics())
    assert found["prompt tokens"] == math.log(1001)
    assert found["new tokens"] == math.log(51)
    assert found["max_output"] == math.log(513)
    assert found["finished segments"] == found["trust in the kind"] == 0
    assert found["mean of all"] == found["mean of the job"] == found["last of the job"] == math.log(80)
    assert waits(Statistics())["mean of the verb"] == math.log(0.3)
    assert waits(Statistics())["output tokens of the call"] == 0


def test_each_level_is_shrunk_towards_the_one_above() -> None:
    statistics = Statistics()
    for _ in range(500):
        statistics.observe_wait("a", "j", "bash:ls", 1.0)
    for _ in range(4):
        statistics.observe_wait("a", "k", "bash:pytest", math.exp(8.0))
    found = waits(statistics, job="k", tool="bash:pytest")
    assert 0 < found["mean of the tool"] < 0.1
    # As many values as the tool counts for: half of each.
    assert found["mean of the verb"] == pytest.approx((8.0 + found["mean of the tool"]) / 2)
    assert found["mean of the job"] == pytest.approx((8.0 + found["mean of the kind"]) / 2)
    assert found["spread of the verb"] == pytest.approx(4.0, rel=0.05)
    assert found["trust in the verb"] == 0.5
    assert found["last of the job"] == 8.0
    assert waits(statistics, tool="bash:new")["mean of the verb"] == found["mean of the tool"]


def test_numbers_of_a_kind_have_means_of_their_own() -> None:
    statistics = Statistics()
    for job in map(str, range(100)):
        statistics.observe_segment("a", job, 10)
        statistics.observe_segment("a", job, 1000)
    first = outputs(statistics, job="new")
    assert first["mean of the kind at this number"] == pytest.approx(math.log(10), rel=0.1)
    assert first["finished segments"] == 0
    statistics.observe_segment("a", "new", 10)
    second = outputs(statistics, job="new")
    assert second["mean of the kind at this number"] == pytest.approx(math.log(1000), rel=0.1)
    assert second["finished segments"] == math.log(2)
    assert second["last of the job"] == math.log(10)
    assert second["spread of the kind at this number"] < 1 < 2 < second["spread of the kind"]


def test_late_numbers_share_one_mean() -> None:
    statistics = Statistics()
    for _ in range(500):
        statistics.observe_segment("a", "j", 10)
    assert len(statistics._means) < 20
    assert outputs(statistics)["trust in the kind at this number"] > 0.98


def test_other_kinds_and_jobs_are_not_mixed_in() -> None:
    statistics = Statistics()
    for _ in range(300):
        statistics.observe_segment("b", "k", 5000)
    before = outputs(statistics)
    statistics.observe_segment("b", "k", 5000)
    after = outputs(statistics)
    assert after["trust in the kind"] == before["trust in the kind"] == 0
    assert after["finished segments"] == 0
    assert after["mean of all"] > before["mean of all"]


def test_what_changed_is_learned_again() -> None:
    statistics = Statistics()
    for output in [10] * 5000 + [1000] * 2000:
        statistics.observe_segment("a", "j", output)
    assert outputs(statistics)["mean of the kind"] == pytest.approx(math.log(1000), rel=0.05)


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "_MAX_MEANS", 40)
    monkeypatch.setattr(learned, "_MAX_JOBS", 20)
    statistics = Statistics()
    for index in range(200):
        statistics.observe_segment(f"kind {index}", f"job {index}", 10)
        statistics.observe_wait(f"kind {index}", f"job {index}", f"tool {index}:verb", 1.0)
    assert len(statistics._means) == 40
    assert len(statistics._jobs) == 20
    assert outputs(statistics, "kind 199", "job 199")["finished segments"] > 0
    assert outputs(statistics, "kind 0", "job 0")["finished segments"] == 0
