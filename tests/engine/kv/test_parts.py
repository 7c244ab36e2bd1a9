"""The tree of parked parts against the obvious: a list of all conversations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.engine.binding import Tokens
from astraea_local.engine.kv.parts import PartTree, part_id, path
from astraea_local.engine.slots import common_prefix

# Few different tokens, so that conversations share beginnings.
conversations = st.lists(st.integers(1, 3), min_size=1, max_size=12).map(
    lambda t: np.array(t, dtype=np.int32)
)


def _keep(tree: PartTree, talk: Tokens, job: str) -> None:
    part, covered = tree.match(talk)
    if covered < len(talk):
        part = tree.add(part, covered, talk[covered:], 10 * (len(talk) - covered), 0.0)
    assert part is not None
    tree.own(job, part, len(talk))


@given(st.lists(conversations, max_size=12), conversations)
def test_the_longest_known_prefix_is_found(known: list[Tokens], prompt: Tokens) -> None:
    tree = PartTree()
    for number, talk in enumerate(known):
        _keep(tree, talk, f"job-{number}")
    part, length = tree.match(prompt)
    assert length == max((common_prefix(talk, prompt) for talk in known), default=0)
    assert (part is None) == (length == 0)
    if part is not None:
        pieces = path(part, length)
        joined = np.concatenate(
            [p.part.tokens[p.start - p.part.start : p.end - p.part.start] for p in pieces]
        )
        assert np.array_equal(joined, prompt[:length])


@given(st.lists(conversations, min_size=1, max_size=12))
def test_a_token_behind_the_same_tokens_is_stored_once(known: list[Tokens]) -> None:
    tree = PartTree()
    for number, talk in enumerate(known):
        _keep(tree, talk, f"job-{number}")
    prefixes = {tuple(talk[:end]) for talk in known for end in range(1, len(talk) + 1)}
    assert sum(len(part.tokens) for part in tree) == len(prefixes)


@given(st.lists(conversations, min_size=2, max_size=8), st.integers(0, 7))
def test_removing_a_part_removes_what_hangs_from_it_and_nothing_else(known: list[Tokens], which: int) -> None:
    tree = PartTree()
    for number, talk in enumerate(known):
        _keep(tree, talk, f"job-{number}")
    victim = list(tree)[which % len(tree)]
    through = {job for job, part, length in tree.jobs() if victim in [p.part for p in path(part, length)]}
    gone = tree.remove(victim)
    assert victim in gone
    assert {job for job, _part, _length in tree.jobs()} == {f"job-{n}" for n in range(len(known))} - through
    for part in tree:
        assert part not in gone
        assert part.parent is None or part.parent in list(tree)


def test_a_newer_state_of_a_job_supersedes_the_older() -> None:
    tree = PartTree()
    _keep(tree, np.array([1, 2, 3], dtype=np.int32), "job")
    _keep(tree, np.array([1, 2, 3, 1, 1], dtype=np.int32), "job")
    found = tree.end_of("job")
    assert found is not None
    assert found[1] == 5
    assert len(list(tree.jobs())) == 1
    assert len(tree) == 2


def test_whole_states_match_only_in_full() -> None:
    tree = PartTree()
    tree.add(None, 0, np.array([1, 2, 3], dtype=np.int32), 1, 0.0)
    tree.add(None, 0, np.array([1, 2], dtype=np.int32), 1, 0.0)
    assert tree.whole(np.array([1, 2, 3, 4], dtype=np.int32))[1] == 3
    assert tree.whole(np.array([1, 2, 9], dtype=np.int32))[1] == 2
    assert tree.whole(np.array([1, 9], dtype=np.int32)) == (None, 0)


def test_the_address_depends_on_everything_before_a_part() -> None:
    some = np.array([1, 2], dtype=np.int32)
    ids = {part_id("", 0, some), part_id("a", 0, some), part_id("a", 2, some), part_id("a", 2, some[:1])}
    assert len(ids) == 4
