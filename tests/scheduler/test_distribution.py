"""Distributions, and how they are learned."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astraea_local.scheduler import distribution
from astraea_local.scheduler.distribution import Distribution, Empirical, lognormal

BIN = 10 ** (1 / 20)
"""Ratio of neighbouring bins; a value is kept within half of it."""
TOLERANCE = 0.1
"""Share of its values that each node of a path may lack in a prediction."""

positive = st.floats(1e-3, 1e6)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    points = sorted(draw(st.lists(positive, min_size=1, max_size=30)))
    weights = draw(st.lists(st.floats(1e-3, 1e3), min_size=len(points), max_size=len(points)))
    return Distribution.of(points, weights)


def learner(prior: float = 10.0) -> Empirical:
    return Empirical(Distribution.of([prior]))


def apart(a: Distribution, b: Distribution) -> float:
    """Total variation distance: the most by which any probability differs."""
    first = dict(zip(a.points, a.weights, strict=True))
    second = dict(zip(b.points, b.weights, strict=True))
    return 0.5 * sum(abs(first.get(p, 0.0) - second.get(p, 0.0)) for p in first.keys() | second.keys())


@given(distributions())
def test_weights_sum_to_one_and_the_mean_lies_between_the_points(found: Distribution) -> None:
    assert math.fsum(found.weights) == pytest.approx(1.0)
    assert found.points[0] * (1 - 1e-9) <= found.mean <= found.points[-1] * (1 + 1e-9)


@given(distributions(), st.lists(st.floats(0, 1), min_size=2))
def test_quantiles_are_points_and_ascend(found: Distribution, shares: list[float]) -> None:
    quantiles = [found.quantile(share) for share in sorted(shares)]
    assert quantiles == sorted(quantiles)
    assert set(quantiles) <= set(found.points)
    assert found.quantile(1.0) == found.points[-1]


@given(distributions(), st.floats(0.01, 1))
def test_at_or_below_a_quantile_lies_its_share(found: Distribution, share: float) -> None:
    assert 1 - found.beyond(found.quantile(share)) >= share - 1e-9


@given(distributions(), st.floats(0, 2e6))
def test_what_is_left_is_what_remaining_expects(found: Distribution, reached: float) -> None:
    rest = found.rest(reached)
    assert rest.points[0] > 0
    # What is within rounding of `reached` counts as passed.
    near = min(abs(point - reached) for point in found.points)
    if near > 1e-6 * (1 + reached):
        assert rest.mean == pytest.approx(found.remaining(reached), rel=1e-6, abs=1e-6)


def test_a_moment_that_was_planned_for_has_passed() -> None:
    found = Distribution.of([0.1, 5.0])
    assert found.rest(0.1 - 1e-12).points == pytest.approx((4.9,))
    assert found.rest(0.0) == found


@example(Distribution.of([1.0, 524290.8129131634]), 0.5, 1.952546097629238)
@given(distributions(), st.floats(0.01, 0.99), st.floats(0, 2e6))
def test_a_quantile_beyond_is_beyond_and_has_its_share(
    found: Distribution, share: float, reached: float
) -> None:
    point = found.quantile_beyond(share, reached)
    assert point > reached
    if found.beyond(reached) > 0:
        assert point in found.points
        # Two units in the last place more: the sum of the two may be rounded to less than the point.
        just_after = math.nextafter(math.nextafter(point, math.inf), math.inf)
        assert found.within(reached, just_after - reached) >= share - 1e-6


@given(distributions(), st.floats(0.01, 0.99))
def test_a_quantile_beyond_nothing_is_the_quantile(found: Distribution, share: float) -> None:
    point = found.quantile_beyond(share, 0.0)
    assert 1 - found.beyond(point) >= share - 1e-9
    assert point <= found.quantile(min(1.0, share + 1e-9))


@given(distributions(), positive, positive)
def test_probabilities_are_probabilities(found: Distribution, a: float, b: float) -> None:
    low, more = min(a, b), abs(a - b)
    high = low + more
    assert 0 <= found.beyond(high) <= found.beyond(low) <= 1 + 1e-9
    assert -1e-9 <= found.within(low, more) <= 1
    assert found.beyond(low) * (1 - found.within(low, more)) == pytest.approx(found.beyond(high))


@given(distributions())
def test_every_point_comes_with_what_the_methods_say_of_it(found: Distribution) -> None:
    last = {point: (capped, beyond) for point, capped, beyond in found.thresholds()}
    assert list(last) == sorted(set(found.points))
    for point, (capped, beyond) in last.items():
        assert capped == pytest.approx(found.capped(point))
        assert beyond == found.beyond(point)


@given(distributions(), positive)
def test_something_always_remains(found: Distribution, reached: float) -> None:
    assert found.remaining(0.0) == pytest.approx(found.mean)
    assert found.remaining(reached) > -1e-9 * reached
    if reached >= found.points[-1]:
        assert found.remaining(reached) == 0.25 * reached


def test_what_is_memoryless_always_has_the_same_rest() -> None:
    count = 5000
    found = Distribution.of([-7.0 * math.log(1 - (i + 0.5) / count) for i in range(count)])
    for reached in (0.0, 1.0, 5.0, 10.0, 20.0):
        assert found.remaining(reached) == pytest.approx(7.0, rel=0.05)


@given(distributions(), st.floats(0.01, 100))
def test_a_scaled_one_has_scaled_quantiles(found: Distribution, factor: float) -> None:
    scaled = found.scaled(factor)
    assert scaled.mean == pytest.approx(found.mean * factor)
    assert scaled.quantile(0.5) == pytest.approx(found.quantile(0.5) * factor)


@pytest.mark.parametrize(("points", "weights"), [([], None), ([], []), ([1.0], []), ([1.0, 2.0], [1.0])])
def test_points_need_weights(points: list[float], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="points"):
        Distribution.of(points, weights)


@given(st.floats(1e-2, 1e4), st.floats(1.05, 4))
def test_a_lognormal_has_its_median_and_nearly_its_mean(median: float, ratio: float) -> None:
    found = lognormal(median, median * ratio)
    assert math.sqrt(found.quantile(0.5) * found.quantile(0.51)) == pytest.approx(median)
    # The outermost of fifty points cannot stand for all of the tail.
    assert 0.8 * median * ratio < found.mean < 1.01 * median * ratio


def test_nothing_seen_gives_the_prior() -> None:
    prior = lognormal(80, 167)
    found = Empirical(prior).predict(("a", "b"))
    assert found.mean == pytest.approx(prior.mean, rel=BIN - 1)
    assert found.quantile(0.9) == pytest.approx(prior.quantile(0.9), rel=BIN - 1)


@given(st.lists(positive, min_size=1, max_size=400), positive)
def test_the_mean_of_what_was_seen_is_known_within_half_a_bin(values: list[float], prior: float) -> None:
    learned = learner(prior)
    for value in values:
        learned.observe((), value)
    expected = (6 * prior + math.fsum(values)) / (6 + len(values))
    found = learned.predict()
    assert expected / math.sqrt(BIN) * (1 - 1e-9) <= found.mean <= expected * math.sqrt(BIN) * (1 + 1e-9)
    assert math.fsum(found.weights) == pytest.approx(1.0)
    assert list(found.points) == sorted(set(found.points))
    assert learned.count == len(values)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("de"), positive), max_size=60))
def test_predictions_of_any_path_are_distributions(seen: list[tuple[str, str, float]]) -> None:
    learned = Empirical(lognormal(0.3, 4.0))
    for first, second, value in seen:
        learned.observe((first, second), value)
        found = learned.predict((first, second))
        assert math.fsum(found.weights) == pytest.approx(1.0)
        assert found.points[0] <= found.mean <= found.points[-1]


def _parent_and_child(count: int) -> Empirical:
    learned = learner()
    for _ in range(100):
        learned.observe(("shell",), 1.0)
    for _ in range(count):
        learned.observe(("shell", "shell:pytest"), 1000.0)
    return learned


def test_a_child_seen_twice_is_near_its_parent_and_one_seen_often_is_itself() -> None:
    path = ("shell", "shell:pytest")
    few, many = _parent_and_child(2), _parent_and_child(200)
    assert few.predict(path).quantile(0.5) == pytest.approx(1.0)
    assert many.predict(path).quantile(0.1) == pytest.approx(1000.0)
    # Six values' worth of the parent.
    assert few.predict(path).beyond(500.0) == pytest.approx(
        2 / 8 + 6 / 8 * few.predict(path[:1]).beyond(500.0)
    )


@given(st.integers(0, 40))
def test_each_value_moves_a_child_towards_itself(count: int) -> None:
    path = ("shell", "shell:pytest")
    assert (
        _parent_and_child(count).predict(path).beyond(500.0)
        < _parent_and_child(count + 1).predict(path).beyond(500.0)
    )  # fmt: skip


def test_the_last_name_of_a_path_weighs_most() -> None:
    learned = learner()
    for _ in range(100):
        learned.observe(("a",), 1.0)
        learned.observe(("b",), 1000.0)
    assert learned.predict(("a", "b")).quantile(0.5) == pytest.approx(1000.0)
    assert learned.predict(("b", "a")).quantile(0.5) == pytest.approx(1.0)


def test_unseen_and_empty_names_change_nothing() -> None:
    learned = learner()
    learned.observe(("a", ""), 5.0)
    assert learned.predict(("b", "c")) == learned.predict(()) == learned.predict(("",))
    assert learned.predict(("a", "a:x")) == learned.predict(("a",))
    assert learned.seen("a") == 1
    assert learned.seen("") == learned.seen("b") == 0


def test_what_changed_is_learned_again() -> None:
    learned = learner()
    for _ in range(5000):
        learned.observe(("a",), 1.0)
    assert learned.seen("a") == pytest.approx(500.0)
    for _ in range(1000):
        learned.observe(("a",), 100.0)
    assert learned.predict(("a",)).quantile(0.2) == pytest.approx(100.0)


def test_names_and_kept_predictions_are_bounded() -> None:
    learned = learner()
    for index in range(3000):
        learned.observe(("always", f"name {index}"), 1.0)
        learned.predict(("always", f"name {index}"))
    assert len(learned._nodes) == 2000
    assert len(learned._cache) <= 500
    assert learned.seen("always") > 400
    assert learned.seen("name 0") == 0
    assert learned.seen("name 2999") == 1


def _uncached(learned: Empirical, path: tuple[str, ...]) -> Distribution:
    kept, learned._cache = learned._cache, {}
    found = learned.predict(path)
    learned._cache = kept
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(), ("a",), ("a", "x"), ("b", "x")]), st.integers(0, 3), st.integers(1, 60)
        ),
        max_size=40,
    )
)
def test_kept_predictions_are_as_good_as_documented(seen: list[tuple[tuple[str, ...], int, int]]) -> None:
    learned = learner()
    for path, magnitude, count in seen:
        for _ in range(count):
            learned.observe(path, 10.0**magnitude)
        for asked in ((), ("a",), ("a", "x"), ("b", "x"), ("x", "a")):
            assert apart(learned.predict(asked), _uncached(learned, asked)) <= TOLERANCE * (len(asked) + 1)


def test_few_values_are_predicted_exactly() -> None:
    learned = learner()
    for value in range(1, 10):
        learned.observe(("a",), float(value))
        assert learned.predict(("a",)) == _uncached(learned, ("a",))


def test_a_kept_prediction_is_reused_until_a_node_grew() -> None:
    learned = learner()
    for _ in range(100):
        learned.observe(("a",), 1.0)
    first = learned.predict(("a",))
    for _ in range(10):
        learned.observe(("a",), 1000.0)
        assert learned.predict(("a",)) is first
    learned.observe(("a",), 1000.0)
    assert learned.predict(("a",)) is not first


def test_a_child_follows_its_parent() -> None:
    learned = learner()
    learned.observe(("shell", "shell:pytest"), 1.0)
    learned.predict(("shell", "shell:pytest"))
    for _ in range(300):
        learned.observe(("shell",), 1000.0)
    assert learned.predict(("shell", "shell:pytest")).quantile(0.5) == pytest.approx(1000.0)


def test_a_node_that_remembers_all_it_can_is_renewed() -> None:
    learned = learner()
    for _ in range(3000):
        learned.observe(("a",), 1.0)
    learned.predict(("a",))
    for _ in range(500):
        learned.observe(("a",), 1000.0)
        assert apart(learned.predict(("a",)), _uncached(learned, ("a",))) <= TOLERANCE * 2
    assert learned.predict(("a",)).beyond(500.0) > 0.5


def test_a_name_that_was_forgotten_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_MAX_NODES", 2)
    learned = learner()
    for _ in range(200):
        learned.observe(("a",), 1.0)
    learned.predict(("a",))
    learned.observe(("b", "c"), 1.0)
    learned.observe(("a",), 1000.0)
    assert learned.predict(("a",)) == _uncached(learned, ("a",))
