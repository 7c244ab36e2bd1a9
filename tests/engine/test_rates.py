"""Rates of counters."""

import pytest

from astraea_local.engine.rates import Rates


def test_a_steady_counter_has_its_rate_and_a_new_one_none() -> None:
    rates = Rates()
    assert rates.of(1) == 0.0
    rates.look(0.0, {1: 0})
    assert rates.of(1) == 0.0
    rates.look(0.5, {1: 10, 2: 5})
    assert rates.of(1) == pytest.approx(20)
    assert rates.of(2) == 0.0


def test_what_was_longer_ago_than_the_window_does_not_count() -> None:
    rates = Rates()
    for tick in range(41):
        rates.look(tick / 4, {1: min(tick, 20) * 100})
    assert rates.of(1) == 0.0


def test_a_counter_that_ended_is_forgotten() -> None:
    rates = Rates()
    rates.look(0.0, {1: 0})
    rates.look(1.0, {1: 10})
    rates.look(2.0, {})
    assert rates.of(1) == 0.0


def test_two_looks_at_one_moment() -> None:
    rates = Rates()
    rates.look(1.0, {1: 0})
    rates.look(1.0, {1: 5})
    assert rates.of(1) == 0.0
