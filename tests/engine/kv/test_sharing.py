"""How much of their states jobs have in common."""

import numpy as np

from astraea_local.engine.kv.parts import Part, PartTree
from astraea_local.engine.kv.sharing import shared_tokens

TALK = np.arange(400, dtype=np.int32)


def _part(tree: PartTree, parent: Part | None, start: int, end: int, seed: int = 0) -> Part:
    return tree.add(parent, start, TALK[start:end] + seed, 1000, 0.0)


def test_who_is_alone_shares_nothing() -> None:
    tree = PartTree()
    assert shared_tokens(tree) == {}
    tree.own("a", _part(tree, None, 0, 100), 100)
    assert shared_tokens(tree) == {"a": 0}


def test_jobs_that_branch_off_share_what_lies_before() -> None:
    tree = PartTree()
    start = _part(tree, None, 0, 100)
    tree.own("a", _part(tree, start, 100, 200), 200)
    tree.own("b", _part(tree, start, 60, 160, seed=1), 160)
    tree.own("c", _part(tree, None, 0, 50, seed=2), 50)
    assert shared_tokens(tree) == {"a": 60, "b": 60, "c": 0}


def test_a_state_that_begins_another_is_shared_whole() -> None:
    tree = PartTree()
    start = _part(tree, None, 0, 100)
    more = _part(tree, start, 100, 200)
    tree.own("short", more, 150)
    tree.own("long", _part(tree, more, 200, 300), 300)
    assert shared_tokens(tree) == {"short": 150, "long": 150}


def test_three_of_different_length() -> None:
    tree = PartTree()
    start = _part(tree, None, 0, 100)
    tree.own("short", start, 40)
    tree.own("middle", start, 70)
    tree.own("long", _part(tree, start, 100, 120), 120)
    assert shared_tokens(tree) == {"short": 40, "middle": 70, "long": 70}
