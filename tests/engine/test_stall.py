"""The time that moving KV may take of a step."""

from astraea_local.engine.stall import Stall


def test_moving_is_limited_per_step_only_for_those_who_run() -> None:
    free, limited = Stall(None), Stall(0.010)
    assert free.tokens(1e-6) is None
    assert limited.tokens(1e-6) == 6000
    assert limited.allows(1.0)
    limited.spent = 0.008
    assert limited.allows(0.001)
    assert not limited.allows(0.003)
    assert limited.tokens(1.0) == 32


def test_moves_get_room_to_take_longer_than_predicted() -> None:
    limited = Stall(0.010)
    limited.spent = 0.004
    assert limited.allows(0.0035)
    assert not limited.allows(0.005)
