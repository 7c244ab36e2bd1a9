"""How long an engine that keeps dying is left alone, and when it is given up."""

from astraea_local.engine.restart_policy import RestartPolicy


def test_each_crash_in_a_row_waits_twice_as_long_and_the_sixth_is_the_last() -> None:
    policy = RestartPolicy()
    delays = []
    for _ in range(6):
        policy.died(1.0)
        delays.append(policy.delay_s)
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, None]
    assert policy.crashes == 6


def test_an_engine_that_served_for_long_begins_to_count_anew() -> None:
    policy = RestartPolicy()
    for _ in range(5):
        policy.died(1.0)
    policy.died(61.0)
    assert (policy.crashes, policy.delay_s) == (1, 0.25)
