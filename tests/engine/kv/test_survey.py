"""What lies on disk, seen and removed from outside."""

import shutil
from pathlib import Path

import pytest

from astraea_local.engine.kv.disk import DiskStore
from astraea_local.engine.kv.survey import SelectionError, remove, select, survey
from tests.engine.kv.states import IDENTITY, OTHER, part, part_id, settle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Parts 1 <- 2 <- 3 of `coder` and `tester`, 4 by itself; part 1 also for another model."""
    store = DiskStore(tmp_path, IDENTITY, 1 << 20, model="one.gguf")
    store.open()
    store.write(*part(1, job="coder", at=1e9))
    store.write(*part(2, parent=part_id(1), job="coder", at=2e9))
    store.write(*part(3, parent=part_id(2), job="tester", at=3e9))
    store.write(*part(4, 9000, job="tester", at=1.5e9))
    settle(store)
    store.close(timeout_s=30)
    store = DiskStore(tmp_path, OTHER, 1 << 20, model="two.gguf")
    store.open()
    store.write(*part(1, job="coder", at=0.5e9))
    settle(store)
    store.close(timeout_s=30)
    return tmp_path


def _file(root: Path, number: int) -> Path:
    return root / IDENTITY.folder / f"{part_id(number)}.kv"


def _numbers(root: Path, **conditions: object) -> list[int]:
    chosen = select(survey(root), **conditions)  # type: ignore[arg-type]
    return sorted(next(n for n in range(9) if part_id(n) == entry.id) for entry in chosen)


def test_all_models_are_listed_the_last_used_first(root: Path) -> None:
    found = survey(root)
    assert [entry.id for entry in found] == [part_id(n) for n in (3, 2, 4, 1, 1)]
    assert [entry.model for entry in found] == ["one.gguf"] * 4 + ["two.gguf"]
    assert {entry.problem for entry in found} == {""}
    newest, fourth = found[0], found[2]
    assert (newest.job, newest.parent, newest.start, newest.tokens) == ("tester", part_id(2), 3, 7)
    assert (fourth.path, fourth.used_at) == (_file(root, 4), 1.5e9)
    assert fourth.bytes == fourth.path.stat().st_size > 9000


def test_looking_changes_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    _file(root, 4).write_bytes(b"no state")
    survey(root, check=True)
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert {path for path in before if before[path] != after.get(path)} == {_file(root, 4)}
    assert before.keys() == after.keys()


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_without_states_is_empty(tmp_path: Path, number: int) -> None:
    assert survey(tmp_path / ("gone" if number else "")) == []


def test_what_no_server_can_use_says_why(root: Path) -> None:
    whole = bytearray(_file(root, 4).read_bytes())
    whole[-100] ^= 1
    _file(root, 4).write_bytes(whole)
    _file(root, 1).unlink()
    shutil.copy(_file(root, 2), _file(root, 5))
    shutil.copy(_file(root, 3), root / OTHER.folder)
    problems = {entry.path: entry.problem for entry in survey(root)}
    assert problems[_file(root, 2)] == "the part before it is not on disk"
    assert problems[_file(root, 5)] == "under another part's name"
    assert problems[root / OTHER.folder / _file(root, 3).name] == "in another model's folder"
    assert problems[_file(root, 4)] == ""
    checked = {entry.path: entry for entry in survey(root, check=True)}
    assert (checked[_file(root, 4)].problem, checked[_file(root, 4)].job) == ("damaged state", "tester")


@pytest.mark.parametrize(
    ("conditions", "numbers"),
    [
        ({}, [1, 1, 2, 3, 4]),
        ({"ids": [part_id(4)[:8]]}, [4]),
        ({"ids": [part_id(4)[:8].upper(), part_id(3)]}, [3, 4]),
        ({"ids": [part_id(2)]}, [2, 3]),
        ({"ids": [part_id(1)]}, [1, 1, 2, 3]),
        ({"job": "tester"}, [3, 4]),
        ({"job": "nobody"}, []),
        ({"unused_since": 1e9}, [1]),
        ({"job": "tester", "unused_since": 2e9}, [4]),
        ({"unusable": True}, []),
    ],
)
def test_selection_takes_what_continues_it_along(
    root: Path, conditions: dict[str, object], numbers: list[int]
) -> None:
    assert _numbers(root, **conditions) == numbers


@pytest.mark.parametrize(("prefix", "words"), [("zz", "begins with 'zz'"), ("", "begins with ''")])
def test_an_id_that_names_nothing(root: Path, prefix: str, words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        select(survey(root), ids=[prefix])


def test_an_id_that_names_several(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, IDENTITY, 1 << 20)
    store.open()
    for number in range(17):  # of 17 ids two begin alike
        store.write(*part(number, 10))
    settle(store)
    store.close(timeout_s=30)
    found = survey(tmp_path)
    firsts = [entry.id[0] for entry in found]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    with pytest.raises(SelectionError, match="give more digits"):
        select(found, ids=[twice])


def test_removal_leaves_no_empty_folder(root: Path) -> None:
    chosen = [entry for entry in survey(root) if entry.model == "two.gguf" or entry.id == part_id(4)]
    removed, errors = remove(chosen)
    assert (len(removed), errors) == (2, [])
    assert [folder.name for folder in root.iterdir()] == [IDENTITY.folder]
    assert {entry.id for entry in survey(root)} == {part_id(n) for n in (1, 2, 3)}


def test_removal_goes_on_after_an_error(root: Path) -> None:
    chosen = survey(root)
    _file(root, 3).unlink()
    _file(root, 3).mkdir()
    _file(root, 4).unlink()  # by somebody else: just as well
    removed, errors = remove(chosen)
    assert len(removed) == 4
    assert len(errors) == 1
    assert str(_file(root, 3)) in errors[0]
