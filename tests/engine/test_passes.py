"""Which idle sequences make a step quicker."""

from itertools import combinations, count

from hypothesis import given
from hypothesis import strategies as st

from astraea_local.engine.passes import fillers
from astraea_local.scheduler.speeds import Speeds

_GPU = Speeds(step_base_s=0.013, step_segment_s=0.0001, step_token_s=1e-7)
_CPU = Speeds(step_base_s=0.003, step_segment_s=0.005, step_token_s=3e-6)

_STATES = st.dictionaries(st.integers(0, 9), st.integers(0, 50_000), max_size=10)


def _step_s(sequences: dict[int, int], speeds: Speeds) -> float:
    """Seconds of a step over these, pass by pass."""
    ids = sorted(sequences)
    total = 0.0
    while ids:
        group = [i for i, expected in zip(ids, count(ids[0])) if i == expected]
        total += speeds.decode_step(len(group), len(group) * max(sequences[i] for i in group))
        ids = ids[len(group) :]
    return total


def test_a_gap_is_filled_where_a_pass_is_dearer_than_a_token() -> None:
    running, idle = {0: 900, 2: 1200, 5: 10}, {1: 300, 3: 0, 4: 2000}
    assert fillers(running, idle, _GPU) == [1, 3, 4]
    assert fillers(running, idle, _CPU) == []


def test_a_gap_stays_where_a_slot_in_it_cannot_be_used() -> None:
    assert fillers({0: 900, 3: 1200}, {1: 300}, _GPU) == []


def test_a_long_idle_state_is_not_worth_it() -> None:
    """Everyone in a pass attends over as many cells as the longest has."""
    assert fillers({0: 900, 2: 900}, {1: 200_000}, _GPU) == []


@given(_STATES, _STATES, st.sampled_from([_GPU, _CPU]))
def test_a_step_is_never_slower_for_it(running: dict[int, int], idle: dict[int, int], speeds: Speeds) -> None:
    idle = {i: tokens for i, tokens in idle.items() if i not in running}
    chosen = fillers(running, idle, speeds)
    assert set(chosen) <= idle.keys()
    assert _step_s(running | {i: idle[i] for i in chosen}, speeds) <= _step_s(running, speeds) + 1e-12


@given(st.sets(st.integers(0, 6), min_size=1), st.integers(0, 3000))
def test_no_other_choice_is_better_among_states_of_one_length(running: set[int], tokens: int) -> None:
    states = dict.fromkeys(running, tokens)
    idle = {i: tokens for i in range(7) if i not in running}
    for speeds in (_GPU, _CPU):
        chosen = fillers(states, idle, speeds)
        cost = _step_s(states | {i: idle[i] for i in chosen}, speeds)
        others = [c for n in range(len(idle) + 1) for c in combinations(idle, n)]
        best = min(_step_s(states | {i: idle[i] for i in c}, speeds) for c in others)
        assert cost <= best + 1e-12
