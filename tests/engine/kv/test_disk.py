"""The store: what was written comes back, what fails is said, and nothing is left behind."""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.engine.kv import files, folder
from astraea_local.engine.kv.disk import DiskStore, Read, ReadFailed, WriteFailed, Written
from astraea_local.engine.kv.files import Bytes, ModelIdentity
from tests.engine.kv.states import IDENTITY, OTHER, part, part_id, read_only, settle

_MIB = 1 << 20
_WAIT_S = 30.0


@contextmanager
def _opened(
    root: Path, budget: int = 64 * _MIB, identity: ModelIdentity = IDENTITY, **more: Callable[[], float]
) -> Iterator[DiskStore]:
    store = DiskStore(root, identity, budget, model="model.gguf", **more)
    store.open()
    try:
        yield store
    finally:
        store.close(timeout_s=_WAIT_S)


def _put(store: DiskStore, *numbers: int, size: int = 5000, at: float = 1e9) -> None:
    for number in numbers:
        store.write(*part(number, size, at=at))
    assert {type(event) for event in settle(store)} <= {Written}


def _got(store: DiskStore, number: int, size: int = 5000) -> Bytes | str:
    """The state, or why there is none."""
    buffer = np.zeros(size, np.uint8)
    store.read(part_id(number), buffer)
    (event,) = settle(store)
    assert event.part_id == part_id(number)
    assert isinstance(event, Read | ReadFailed)
    return buffer if isinstance(event, Read) else event.reason


def _ids(root: Path, identity: ModelIdentity = IDENTITY) -> set[str]:
    """What another store finds."""
    store = DiskStore(root, identity, 0)
    found = {header.id for header in store.open()}
    store.close(timeout_s=_WAIT_S)
    return found


def _everything_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    process = psutil.Process()
    gc.collect()
    threads, handles = threading.active_count(), process.num_fds()
    yield
    assert threading.active_count() == threads
    assert process.num_fds() == handles
    assert not list(tmp_path.rglob(f"*{folder.TEMPORARY}"))


def test_a_part_comes_back_in_a_later_run(tmp_path: Path) -> None:
    header, data = part(1, 3 * _MIB + 5, parent=part_id(9), job="Grüße 🙂")
    with _opened(tmp_path) as store:
        store.write(header, data)
        (event,) = settle(store)
        assert isinstance(event, Written)
        assert event.size == store.bytes_used > header.size
    store = DiskStore(tmp_path, IDENTITY, 64 * _MIB)
    (found,) = store.open()
    assert (found.id, found.parent, found.start, found.job) == (header.id, header.parent, 3, "Grüße 🙂")
    assert np.array_equal(found.tokens, header.tokens)
    assert (found.size, found.used_at, store.bytes_used) == (header.size, 1e9, event.size)
    assert np.array_equal(_got(store, 1, header.size), data)
    store.close(timeout_s=_WAIT_S)


def test_only_the_used_part_of_the_buffers_counts(tmp_path: Path) -> None:
    header, data = part(1, 1000)
    roomy = np.concatenate([data, np.full(500, 7, np.uint8)])
    with _opened(tmp_path) as store:
        store.write(header, roomy)
        settle(store)
        into = np.full(1500, 9, np.uint8)
        store.read(header.id, into)
        assert isinstance(settle(store)[0], Read)
    assert np.array_equal(into[:1000], data)
    assert (into[1000:] == 9).all()


def test_only_the_user_can_look(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "kv"
    previous = os.umask(0)
    try:
        with _opened(root) as store:
            _put(store, 1)
    finally:
        os.umask(previous)
    (file,) = root.rglob("*.kv")
    modes = [path.stat().st_mode & 0o777 for path in (root, root / IDENTITY.folder, file)]
    assert modes == [0o700, 0o700, 0o600]
    file.parent.chmod(0o755)
    with _opened(root) as store:
        assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = tmp_path / "kv"
    root.mkdir()
    (root / IDENTITY.folder).symlink_to(elsewhere)
    store = DiskStore(root, IDENTITY, _MIB)
    assert store.open() == []
    store.close(timeout_s=_WAIT_S)


class _Model:
    """What a store should hold."""

    def __init__(self) -> None:
        self.kept: dict[str, Bytes] = {}
        self.reads: list[tuple[str, Bytes, Bytes | None]] = []


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(["write", "read", "remove", "poll", "reopen"]), st.integers(0, 4)),
        max_size=25,
    )
)
def test_any_sequence_keeps_what_it_should(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("kv")
    model = _Model()
    store = DiskStore(root, IDENTITY, 64 * _MIB)
    store.open()
    results = []
    for number, (what, which) in enumerate(asked):
        name = part_id(which)
        if what == "write":
            header, data = part(1000 + number, 300 * which)
            store.write(replace(header, id=name), data)
            model.kept[name] = data
        elif what == "read":
            buffer = np.zeros(300 * which, np.uint8)
            store.read(name, buffer)
            model.reads.append((name, buffer, model.kept.get(name)))
        elif what == "remove":
            store.remove(name)
            model.kept.pop(name, None)
        elif what == "poll":
            results += store.poll()
        else:
            store.close(timeout_s=_WAIT_S)
            results += store.poll()
            store = DiskStore(root, IDENTITY, 64 * _MIB)
            assert {header.id for header in store.open()} == set(model.kept)
    store.close(timeout_s=_WAIT_S)
    results += store.poll()
    assert store.pending == 0
    assert sum(path.stat().st_size for path in root.rglob("*.kv")) == store.bytes_used
    reads = [event for event in results if isinstance(event, Read | ReadFailed)]
    assert [type(event) for event in reads] == [
        ReadFailed if wanted is None else Read for _, _, wanted in model.reads
    ]
    assert all(np.array_equal(buffer, wanted) for _, buffer, wanted in model.reads if wanted is not None)
    assert sum(isinstance(event, Written) for event in results) == sum(what == "write" for what, _ in asked)
    assert _ids(root) == set(model.kept)


@pytest.mark.parametrize("damage", ["tokens", "state", "cut", "gone", "foreign", "renamed", "version"])
def test_a_file_that_is_spoilt_while_the_store_runs_is_reported_and_removed(
    tmp_path: Path, damage: str
) -> None:
    with _opened(tmp_path) as store:
        _put(store, 1, 2)
        file = store.folder / f"{part_id(1)}.kv"
        whole = bytearray(file.read_bytes())
        if damage == "gone":
            file.unlink()
        elif damage == "foreign":
            head = files.encode(part(1)[0], OTHER, "")
            with folder.new_file(file) as descriptor:
                files.write(descriptor, head, part(1)[1].data, lambda: False)
        elif damage == "renamed":
            shutil.copy(store.folder / f"{part_id(2)}.kv", file)
        else:
            where = {"tokens": -5012, "state": -2000, "cut": -1, "version": 8}[damage]
            whole[where] ^= 0x40
            file.write_bytes(whole[:-1000] if damage == "cut" else whole)
        reason = _got(store, 1)
        words = {
            "tokens": "damaged header",
            "state": "damaged state",
            "cut": "bytes instead of",
            "gone": "the file is gone",
            "foreign": "of another model",
            "renamed": "another part's name",
            "version": "format version 65",
        }
        assert isinstance(reason, str)
        assert words[damage] in reason
        assert not file.exists()
        assert _got(store, 1) == "the file is gone"
        assert np.array_equal(_got(store, 2), part(2)[1])
        assert store.bytes_used == (store.folder / f"{part_id(2)}.kv").stat().st_size
        _put(store, 1)
        assert np.array_equal(_got(store, 1), part(1)[1])


def test_unusable_files_are_removed_at_start_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _opened(tmp_path) as store:
        _put(store, *range(6))
    paths = [store.folder / f"{part_id(number)}.kv" for number in range(6)]
    for number, where in ((1, 8), (2, 50)):
        whole = bytearray(paths[number].read_bytes())
        whole[where] ^= 1
        paths[number].write_bytes(whole)
    os.truncate(paths[3], 100)
    paths[4].write_bytes(b"")
    (store.folder / f"{part_id(7)}.123{folder.TEMPORARY}").write_bytes(b"half")
    notes = store.folder / "notes.txt"
    notes.write_text("not ours")
    store = DiskStore(tmp_path, IDENTITY, _MIB)
    assert {header.id for header in store.open()} == {part_id(0), part_id(5)}
    assert store.discarded == 5
    store.close(timeout_s=_WAIT_S)
    assert "1 format version 0, this is version 1" in caplog.text
    assert "1 left half written" in caplog.text
    assert sorted(store.folder.iterdir()) == sorted([paths[0], paths[5], notes])


def test_a_state_damaged_between_runs_is_found_when_it_is_read(tmp_path: Path) -> None:
    with _opened(tmp_path) as store:
        _put(store, 1)
    file = store.folder / f"{part_id(1)}.kv"
    whole = bytearray(file.read_bytes())
    whole[-100] ^= 1
    file.write_bytes(whole)
    with _opened(tmp_path) as store:
        assert _got(store, 1) == "damaged state"


def test_a_file_removed_while_it_is_read_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.readv
    begun: list[int] = []

    def readv(descriptor: int, buffers: list[memoryview]) -> int:
        if not begun:
            shutil.rmtree(tmp_path / IDENTITY.folder)
        begun.append(descriptor)
        return original(descriptor, buffers)

    with _opened(tmp_path) as store:
        _put(store, 1, size=2 * _MIB)
        monkeypatch.setattr(os, "readv", readv)
        assert np.array_equal(_got(store, 1, 2 * _MIB), part(1, 2 * _MIB)[1])
        assert _got(store, 1, 2 * _MIB) == "the file is gone"


def test_a_file_cut_off_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.readv

    def readv(descriptor: int, buffers: list[memoryview]) -> int:
        os.truncate(descriptor_path, _MIB)
        return original(descriptor, buffers)

    with _opened(tmp_path) as store:
        _put(store, 1, size=2 * _MIB)
        descriptor_path = store.folder / f"{part_id(1)}.kv"
        monkeypatch.setattr(os, "readv", readv)
        assert _got(store, 1, 2 * _MIB) == "cut off while it was read"


def test_a_disk_that_takes_no_more_costs_one_part(tmp_path: Path) -> None:
    """The kernel refuses in the middle of the file, as a full disk does."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _opened(tmp_path) as store:
        _put(store, 1)
        used = store.bytes_used
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MIB, unlimited[1]))
        try:
            store.write(*part(2, 3 * _MIB))
            (event,) = settle(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert event == WriteFailed(part_id(2), "File too large")
        assert (store.bytes_used, store.free_bytes()) == (used, 0)
        assert _everything_under(store.folder) == [f"{part_id(1)}.kv"]
        _put(store, 2, size=3 * _MIB)
        assert store.free_bytes() > 0


def test_no_space_left_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    full = os.open("/dev/full", os.O_WRONLY)

    def write(descriptor: int, data: memoryview) -> int:
        return original(descriptor if len(data) < 5000 else full, data)

    try:
        with _opened(tmp_path) as store:
            _put(store, 1, size=3000)
            monkeypatch.setattr(os, "write", write)
            store.write(*part(1, 6000))
            assert settle(store) == [WriteFailed(part_id(1), "No space left on device")]
            monkeypatch.undo()
            assert np.array_equal(_got(store, 1, 3000), part(1, 3000)[1])
    finally:
        os.close(full)


def test_a_nearly_full_device_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _opened(tmp_path) as store:
        _put(store, 1)
        usage = shutil.disk_usage(tmp_path)._replace(free=folder.RESERVE_BYTES + 9000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        store.write(*part(2, 6000))
        assert settle(store) == [WriteFailed(part_id(2), "disk full: 512 MiB are left")]
        _put(store, 3, size=4000)


def test_a_root_that_cannot_be_made_refuses_every_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    store = DiskStore(blocker / "kv", IDENTITY, _MIB)
    assert store.open() == []
    assert "cannot be kept on disk" in caplog.text
    assert store.free_bytes() == 0
    store.write(*part(1))
    assert settle(store) == [WriteFailed(part_id(1), "Not a directory")]
    assert _got(store, 1) == "Not a directory"
    store.close(timeout_s=_WAIT_S)
    blocker.unlink()
    with _opened(blocker / "kv") as store:
        _put(store, 1)


def test_a_folder_that_is_read_only_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _opened(tmp_path) as store:
        _put(store, 1)
    read_only(monkeypatch)
    with _opened(tmp_path) as store:
        assert np.array_equal(_got(store, 1), part(1)[1])
        store.write(*part(2))
        assert settle(store) == [WriteFailed(part_id(2), "Read-only file system")]
        assert store.free_bytes() == 0


def test_a_cache_emptied_by_the_user_is_made_again(tmp_path: Path) -> None:
    with _opened(tmp_path / "kv") as store:
        _put(store, 1)
        shutil.rmtree(tmp_path / "kv")
        _put(store, 2)
        assert _got(store, 1) == "the file is gone"
        assert np.array_equal(_got(store, 2), part(2)[1])


def test_without_a_budget_nothing_is_written(tmp_path: Path) -> None:
    with _opened(tmp_path, budget=0) as store:
        store.write(*part(1))
        assert settle(store) == [WriteFailed(part_id(1), "disk budget")]
        assert (store.bytes_used, store.free_bytes()) == (0, 0)
    assert _everything_under(tmp_path) == []


def test_the_budget_holds_and_removing_makes_room(tmp_path: Path) -> None:
    with _opened(tmp_path, budget=22_000) as store:
        _put(store, 1, 2)
        assert 0 < store.free_bytes() < 5000
        store.write(*part(3))
        assert settle(store) == [WriteFailed(part_id(3), "disk budget")]
        store.remove(part_id(1))
        assert store.free_bytes() > 9500
        _put(store, 3)
        _put(store, 3)  # in place of itself
        assert _got(store, 1) == "the file is gone"
    assert _ids(tmp_path) == {part_id(2), part_id(3)}


def test_two_models_share_the_budget_and_the_oldest_of_the_other_gives_way(tmp_path: Path) -> None:
    with _opened(tmp_path, identity=OTHER) as other:
        for number in (1, 2, 3):
            _put(other, number, at=1e9 + number)
        np.testing.assert_array_equal(_got(other, 1), part(1)[1])  # used just now
    with _opened(tmp_path, budget=30_000) as store:
        _put(store, 1)
        assert _ids(tmp_path, OTHER) == {part_id(1), part_id(3)}
        _put(store, 2, 3)
        assert _ids(tmp_path, OTHER) == set()
        assert not (tmp_path / OTHER.folder / f"{part_id(1)}.kv").exists()
        store.write(*part(4))
        assert settle(store) == [WriteFailed(part_id(4), "disk budget")]
    assert _ids(tmp_path) == {part_id(1), part_id(2), part_id(3)}


def test_others_are_not_removed_for_what_does_not_fit_anyway(tmp_path: Path) -> None:
    with _opened(tmp_path, identity=OTHER) as other:
        _put(other, 1)
    with _opened(tmp_path, budget=12_000) as store:
        store.write(*part(2, 9000))
        assert settle(store) == [WriteFailed(part_id(2), "disk budget")]
    assert _ids(tmp_path, OTHER) == {part_id(1)}


def test_another_server_does_not_lose_what_it_is_writing(tmp_path: Path) -> None:
    target = tmp_path / OTHER.folder / f"{part_id(1)}.kv"
    folder.prepare(tmp_path, OTHER.folder)
    header, data = part(1)
    with folder.new_file(target) as descriptor:
        with _opened(tmp_path) as store:
            assert store.discarded == 0
        files.write(descriptor, files.encode(header, OTHER, ""), data.data, lambda: False)
    with _opened(tmp_path, identity=OTHER) as other:
        assert np.array_equal(_got(other, 1), data)


def test_the_clock_may_jump(tmp_path: Path) -> None:
    far = 1e11
    with _opened(tmp_path) as store:
        _put(store, 1, at=far)
        _put(store, 2, at=-5.0)
    store = DiskStore(tmp_path, IDENTITY, _MIB, clock=lambda: 2e9)
    used = {header.id: header.used_at for header in store.open()}
    store.close(timeout_s=_WAIT_S)
    assert used == {part_id(1): 2e9, part_id(2): -5.0}


def test_a_read_renews_a_state(tmp_path: Path) -> None:
    with _opened(tmp_path, clock=lambda: 1.5e9) as store:
        _put(store, 1, 2)
        _got(store, 1)
    store = DiskStore(tmp_path, IDENTITY, _MIB)
    used = {header.id: header.used_at for header in store.open()}
    store.close(timeout_s=_WAIT_S)
    assert used == {part_id(1): 1.5e9, part_id(2): 1e9}


def test_a_buffer_that_is_too_small_loses_nothing(tmp_path: Path) -> None:
    with _opened(tmp_path) as store:
        _put(store, 1)
        assert "does not fit" in str(_got(store, 1, 4999))
        assert np.array_equal(_got(store, 1), part(1)[1])
        with pytest.raises(ValueError, match="data: 5000 bytes"):
            store.write(part(2)[0], np.zeros(4999, np.uint8))
        with pytest.raises(ValueError, match="in one piece"):
            store.write(part(2)[0], np.zeros(10_000, np.uint8)[::2])
        assert store.pending == 0


def test_a_closed_store_refuses(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, IDENTITY, _MIB)
    store.open()
    store.close(timeout_s=_WAIT_S)
    store.write(*part(1))
    store.read(part_id(1), np.zeros(10, np.uint8))
    store.remove(part_id(1))
    closed = "the store is closed"
    assert store.poll() == [WriteFailed(part_id(1), closed), ReadFailed(part_id(1), closed)]
    store.close(timeout_s=_WAIT_S)


@pytest.mark.parametrize("flush", [True, False])
def test_a_slow_disk_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: bool
) -> None:
    """The write in progress ends at its next slice, the others are not begun; the caller hears of all."""
    writing, may_go_on = threading.Event(), threading.Event()
    original = os.write

    def write(descriptor: int, data: memoryview) -> int:
        writing.set()
        may_go_on.wait(_WAIT_S)
        return original(descriptor, data)

    store = DiskStore(tmp_path, IDENTITY, 64 * _MIB)
    store.open()
    monkeypatch.setattr(os, "write", write)
    for number in (1, 2):
        store.write(*part(number, 2 * _MIB))
    store.read(part_id(2), np.zeros(2 * _MIB, np.uint8))
    assert writing.wait(_WAIT_S)
    closing = threading.Thread(target=lambda: store.close(flush=flush, timeout_s=0.0 if flush else _WAIT_S))
    closing.start()
    while not store._cancelled.is_set():
        time.sleep(0.001)
    may_go_on.set()
    closing.join(_WAIT_S)
    assert sorted((type(event).__name__, event.part_id) for event in store.poll()) == sorted(
        [("WriteFailed", part_id(1)), ("WriteFailed", part_id(2)), ("ReadFailed", part_id(2))]
    )
    assert _everything_under(tmp_path) == []


_ENDLESS = """
import sys
from pathlib import Path
from astraea_local.engine.kv.disk import DiskStore
from tests.engine.kv.states import IDENTITY, part, settle
store = DiskStore(Path(sys.argv[1]), IDENTITY, 1 << 40)
store.open()
for number in range(1_000_000):
    store.write(*part(number % 5, 8 << 20))
    settle(store)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """After `kill -9` the next start finds whole files only."""
    root = Path(__file__).parents[3]
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(tmp_path)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        until = time.monotonic() + _WAIT_S
        halves: list[Path] = []
        while not halves or not list(tmp_path.rglob("*.kv")):
            assert child.poll() is None
            assert time.monotonic() < until
            halves = list(tmp_path.rglob(f"*{folder.TEMPORARY}"))
        child.send_signal(signal.SIGKILL)
        child.wait(_WAIT_S)
        store = DiskStore(tmp_path, IDENTITY, 1 << 40)
        found = store.open()
        assert found
        assert not list(tmp_path.rglob(f"*{folder.TEMPORARY}"))
        for header in found:
            buffer = np.zeros(header.size, np.uint8)
            store.read(header.id, buffer)
            (event,) = settle(store)
            assert isinstance(event, Read)
            number = next(n for n in range(5) if part_id(n) == header.id)
            assert np.array_equal(buffer, part(number, 8 << 20)[1])
        store.close(timeout_s=_WAIT_S)
