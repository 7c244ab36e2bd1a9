"""How many calls a job still makes, learned while jobs run."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.survival import Survival


def _ended(survival: Survival, kind: str, calls: int) -> None:
    for number in range(1, calls + 1):
        survival.observe(kind, number, ended=number == calls)


def _still_running(survival: Survival, kind: str, calls: int) -> None:
    for number in range(1, calls + 1):
        survival.observe(kind, number, ended=False)


@pytest.mark.parametrize("mean", [3.0, 10.0, 40.0])
def test_before_anything_was_seen_a_job_is_expected_to_make_the_mean_number_of_calls(mean: float) -> None:
    assert 1 + Survival(mean).remaining("new", 1) == pytest.approx(mean, rel=0.15)


def test_the_longer_an_unknown_job_runs_the_nearer_its_end() -> None:
    survival = Survival(10.0)
    rests = [survival.remaining("", number) for number in range(1, 300)]
    assert rests == sorted(rests, reverse=True)


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_family_that_always_makes_as_many_calls_is_known_to(calls: int) -> None:
    survival = Survival(10.0)
    for _ in range(1000):
        _ended(survival, "same", calls)
    for number in range(1, calls + 1):
        assert survival.remaining("same", number) == pytest.approx(calls - number, abs=0.06)


@pytest.mark.parametrize("calls", [12, 20, 50, 120, 250])
def test_beyond_a_few_calls_it_is_known_roughly(calls: int) -> None:
    survival = Survival(10.0)
    for _ in range(1000):
        _ended(survival, "same", calls)
    assert 1 + survival.remaining("same", 1) == pytest.approx(calls, rel=0.2)


def test_jobs_that_still_run_count() -> None:
    """A young server has seen the end of short jobs only; the long ones are under way."""
    survival, rng = Survival(10.0), random.Random(5)
    lengths, ended = [], []
    for _ in range(4000):
        length, seen = rng.choice((1, 2, 4, 8, 30)), rng.randint(1, 30)
        lengths.append(length)
        if length <= seen:
            ended.append(length)
            _ended(survival, "mixed", length)
        else:
            _still_running(survival, "mixed", seen)
    truth = fmean(lengths)
    assert fmean(ended) < 0.75 * truth
    assert 1 + survival.remaining("mixed", 1) == pytest.approx(truth, rel=0.1)
    # Of those that go beyond eight calls, all make thirty.
    assert survival.remaining("mixed", 9) == pytest.approx(21, rel=0.2)


def test_jobs_that_never_ended_are_expected_to_go_on_but_not_for_ever() -> None:
    survival = Survival(10.0)
    for _ in range(100):
        _still_running(survival, "endless", 8)
    assert survival.remaining("endless", 1) > Survival(10.0).remaining("endless", 1) + 3
    assert survival.remaining("endless", 9) < 10


def test_a_kind_of_which_little_is_known_is_taken_for_the_others() -> None:
    survival = Survival(10.0)
    for _ in range(200):
        _ended(survival, "short", 2)
    assert survival.remaining("never seen", 1) == pytest.approx(survival.remaining("short", 1), abs=0.2)
    _ended(survival, "long", 8)
    once = survival.remaining("long", 1)
    for _ in range(50):
        _ended(survival, "long", 8)
    often = survival.remaining("long", 1)
    assert survival.remaining("short", 1) < once < often < 7


def test_kinds_are_bounded_and_the_longest_unused_is_forgotten() -> None:
    survival = Survival(10.0)
    for _ in range(50):
        _ended(survival, "early", 8)
        _ended(survival, "used", 8)
    for number in range(3000):
        _ended(survival, f"name {number}", 1)
        if number % 100 == 0:
            _ended(survival, "used", 8)
    assert len(survival._kinds) == 500
    assert survival.remaining("used", 1) > 5
    assert survival.remaining("early", 1) == survival.remaining("never seen", 1) < 1


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(1, 600), st.booleans()), max_size=60),
    st.integers(1, 100_000),
)
def test_the_rest_is_always_a_number_of_calls(seen: list[tuple[str, int, bool]], number: int) -> None:
    survival = Survival(10.0)
    for kind, calls, ended in seen:
        survival.observe(kind, calls, ended=ended)
    assert survival.count == len(seen)
    for kind in ("", "a", "c"):
        rest = survival.remaining(kind, number)
        assert math.isfinite(rest)
        assert rest >= 0


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 300)), max_size=40), st.integers(1, 300)
)
def test_the_effort_is_the_least_over_all_numbers_of_calls_after_which_one_may_stop(
    jobs: list[tuple[str, int]], number: int
) -> None:
    survival = Survival(10.0)
    for kind, calls in jobs:
        _ended(survival, kind, calls)
    for kind in ("a", "b", "c"):
        effort, remaining = survival.effort(kind, number), survival.remaining(kind, number)
        # The mean of what is left tells each call's hazard: rest(n) = (1 - hazard(n)) (1 + rest(n + 1)).
        made, there, least = 0.0, 1.0, 1.0 + remaining
        for n in range(number, 256):
            made += there
            there *= min(1.0, survival.remaining(kind, n) / (1.0 + survival.remaining(kind, n + 1)))
            if there < 1.0:
                least = min(least, made / (1.0 - there))
        assert effort == pytest.approx(least - 1.0, rel=1e-6, abs=1e-6)


def test_many_short_jobs_and_a_few_long_ones_take_little_effort_until_they_have_shown_to_be_long() -> None:
    survival = Survival(10.0)
    for _ in range(100):
        for calls in (2, 2, 2, 2, 60):
            _ended(survival, "agent", calls)
    assert survival.remaining("agent", 1) == pytest.approx(12.6, rel=0.1)
    assert survival.effort("agent", 1) == pytest.approx(1.5, rel=0.05)  # two calls, four times in five
    assert survival.effort("agent", 3) > 40
