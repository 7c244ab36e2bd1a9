"""The history: what goes in comes out, and no file whatever stops a server."""

import logging
import math
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.history import (
    History,
    HistoryError,
    HistoryWriter,
    JobRecord,
    SegmentRecord,
    default_path,
)

CAPACITY = 10_000
SEGMENT = SegmentRecord(
    run="run",
    model="model",
    job="job",
    kind="kind",
    parent="parent",
    number=0,
    arrived=1_700_000_000.0,
    queued_s=0.5,
    prefill_s=0.25,
    decode_s=2.0,
    prompt_tokens=1000,
    cached_tokens=900,
    output_tokens=40,
    max_output=512,
    new_tokens=100,
    preemptions=1,
    tool="bash:pytest",
    wait_s=1.5,
    outcome="stop",
)

counts = st.integers(0, 2**63 - 1)
seconds = st.floats(allow_nan=False)
segment_records = st.builds(
    SegmentRecord,
    run=st.text(),
    model=st.sampled_from(["a", "b"]),
    job=st.text(),
    kind=st.text(),
    parent=st.none() | st.text(),
    number=counts,
    arrived=seconds,
    queued_s=seconds,
    prefill_s=seconds,
    decode_s=seconds,
    prompt_tokens=counts,
    cached_tokens=counts,
    output_tokens=counts,
    max_output=counts,
    new_tokens=counts,
    preemptions=counts,
    tool=st.text(),
    wait_s=st.none() | seconds,
    outcome=st.sampled_from(["stop", "length", "cancelled"]),
)


def numbered(count: int, **changes: Any) -> list[SegmentRecord]:
    return [replace(SEGMENT, number=n, **changes) for n in range(count)]


def numbers(history: History) -> list[int]:
    return [record.number for record in history.segments()]


def wait_until(is_true: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that does not exist, in a folder that does not either."""
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    """An empty history at `path`."""
    with History(path) as opened:
        yield opened


def test_default_is_in_the_state_folder_of_the_user() -> None:
    assert default_path().name == "history.sqlite3"
    assert "astraea-local" in default_path().parts


def test_segment_ended() -> None:
    assert SEGMENT.ended == 1_700_000_002.75


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(segment_records, max_size=6), max_size=4), limit=st.integers(0, 30))
def test_what_goes_in_comes_out(batches: list[list[SegmentRecord]], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "history.sqlite3"
        with History(file) as history:
            for batch in batches:
                history.add(batch)
        added = [record for batch in batches for record in batch]
        of_a = [record for record in added if record.model == "a"]
        with History(file) as history:
            assert history.segments() == added
            assert history.segments(limit=limit) == added[max(0, len(added) - limit) :]
            assert history.segments("a", limit=limit) == of_a[max(0, len(of_a) - limit) :]
            assert history.segments("c") == []


def test_table_and_view_hold_exactly_the_fields_of_the_records(path: Path, history: History) -> None:
    with closing(sqlite3.connect(path)) as connection:
        columns = {
            name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for name in ("segments", "jobs")
        }
        made = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
    assert columns["segments"] == ["id", *(field.name for field in fields(SegmentRecord))]
    assert sorted(columns["jobs"]) == sorted(field.name for field in fields(JobRecord))
    assert made == [("table", "segments"), ("view", "jobs")]


def test_jobs_add_up(history: History) -> None:
    first = replace(SEGMENT, job="long", arrived=100.0, wait_s=None)
    # It overlaps the third, which it outlives.
    second = replace(first, number=1, arrived=110.0, decode_s=50.0, wait_s=7.25, queued_s=1.0)
    third = replace(first, number=2, arrived=120.0, wait_s=None, queued_s=0.0)
    alone = replace(SEGMENT, job="short", arrived=105.0, kind="", parent=None, wait_s=None)
    other_run = replace(first, run="later", model="other", arrived=200.0)
    history.add([first, second, alone, third, other_run])
    assert history.jobs() == [
        JobRecord("later", "long", "kind", "parent", "other", 200.0, 202.75, 1, 40, 0.5, 0.0, 2.75),
        JobRecord("run", "short", "", None, "model", 105.0, 107.75, 1, 40, 0.5, 0.0, 2.75),
        JobRecord("run", "long", "kind", "parent", "model", 100.0, 161.25, 3, 120, 1.5, 7.25, 61.25),
    ]
    assert [job.run for job in history.jobs(limit=1)] == ["later"]


def test_jobs_of_an_empty_history(history: History) -> None:
    assert history.jobs() == []


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [4]), (3, [2, 3, 4]), (5, [0, 1, 2, 3, 4])])
def test_prune_drops_the_oldest(history: History, keep: int, left: list[int]) -> None:
    history.prune(keep)
    history.add(numbered(5))
    history.prune(keep)
    assert numbers(history) == left
    history.add([replace(SEGMENT, number=9)])
    assert numbers(history) == [*left, 9]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": 2**63},
        {"prompt_tokens": np.int64(3)},
        {"prompt_tokens": None},
        {"decode_s": np.float32(3.0)},
        {"decode_s": math.nan},
        {"job": "\ud800"},
        {"tool": object()},
    ],
    ids=str,
)
def test_a_record_that_cannot_be_stored_is_refused_with_its_batch(
    history: History, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="a record cannot be stored: "):
        history.add([SEGMENT, replace(SEGMENT, **changes)])
    assert history.segments() == []


def test_only_the_user_may_read_it(path: Path, history: History) -> None:
    history.add([SEGMENT])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    made = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("*.sqlite3*")}
    del made["history.sqlite3.lock"]
    assert made == {f"history.sqlite3{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}


def test_modes_that_the_user_chose_stay(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    History(path).close()
    path.chmod(0o640)
    History(path).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_threads_that_open_at_once_share_one_file(path: Path) -> None:
    at_once = threading.Barrier(4)
    failures: list[Exception] = []

    def add(run: str) -> None:
        try:
            at_once.wait()
            with History(path, busy_s=60.0) as history:
                for record in numbered(50, run=run):
                    history.add([record])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with History(path) as history:
        records = history.segments()
    assert all([r.number for r in records if r.run == str(n)] == list(range(50)) for n in range(4))


def test_processes_share_one_file(path: Path) -> None:
    program = """
import dataclasses, pathlib, sys
from astraea_local.history import HistoryWriter
from tests.test_history import SEGMENT
writer = HistoryWriter(pathlib.Path(sys.argv[1]), every_s=0.001)
for number in range(500):
    writer.put(dataclasses.replace(SEGMENT, run=sys.argv[2], number=number))
writer.close(60.0)
assert writer.dropped == 0
"""
    root = Path(__file__).parents[1]
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(path), run], cwd=root) for run in ("a", "b")
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    with History(path) as history:
        records = history.segments()
    for run in ("a", "b"):
        assert [r.number for r in records if r.run == run] == list(range(500))
    assert len(records) == 1000


def test_a_reader_sees_what_another_has_added(path: Path, history: History) -> None:
    with History(path) as reader:
        assert reader.segments() == []
        history.add([SEGMENT])
        assert reader.segments() == [SEGMENT]


def spoil_all(path: Path) -> None:
    path.write_bytes(b"this is no database " * 500)


def spoil_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 3 * 4096)


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5 * 4096 + 100)


@pytest.mark.parametrize("spoil", [spoil_all, spoil_middle, cut_off])
def test_a_broken_file_is_moved_aside_and_a_new_one_begun(
    path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    for n in (1, 2):
        with History(path) as history:
            history.add(numbered(1000))
        spoil(path)
        broken = path.read_bytes()
        caplog.clear()
        with History(path) as history:
            assert history.segments() == []
            history.add([SEGMENT])
            assert history.segments() == [SEGMENT]
        aside = path.with_name(f"{path.name}.broken-{n}")
        assert aside.read_bytes() == broken
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        message = caplog.messages[0]
        assert message.startswith(f"{path}: ")
        assert message.endswith(f"moved to {aside}, a new history begins")
        assert "\n" not in message


def test_the_write_ahead_log_of_a_broken_file_goes_with_it(path: Path) -> None:
    with History(path) as still_open:
        still_open.add(numbered(10))
        spoil_all(path)
        with History(path) as history:
            assert history.segments() == []
        aside = path.with_name(f"{path.name}.broken-1")
        assert aside.with_name(f"{aside.name}-wal").stat().st_size > 0


def test_an_empty_file_is_a_new_history(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.touch()
    with History(path) as history:
        history.add([SEGMENT])
        assert history.segments() == [SEGMENT]
    assert caplog.messages == []


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE other (a); PRAGMA user_version = 2;")
    before = path.read_bytes()
    with pytest.raises(HistoryError) as caught:
        History(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: written by a newer astraea-local (schema 2, this one knows 1)")
    assert "upgrade astraea-local or move the file away" in message
    assert path.read_bytes() == before


def test_a_locked_file_says_so(path: Path) -> None:
    with History(path, busy_s=0.0) as history, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = r"history\.sqlite3: database is locked: another program"
        with pytest.raises(HistoryError, match=said):
            history.add([SEGMENT])
        with pytest.raises(HistoryError, match=said):
            history.prune(0)
        assert history.segments() == []
        other.rollback()
        history.add([SEGMENT])
        assert history.segments() == [SEGMENT]


def test_a_full_disk_says_so(history: History) -> None:
    history.add([SEGMENT])
    # SQLite's own limit takes the same way as a disk without room.
    history._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(HistoryError, match=r"history\.sqlite3: .* full: the disk is full; free some space"):
        history.add(numbered(1000))
    assert history.segments() == [SEGMENT]


def test_a_path_that_cannot_be_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    with pytest.raises(HistoryError, match=r"/file/history\.sqlite3: cannot be opened: "):
        History(tmp_path / "file" / "history.sqlite3")
    with pytest.raises(HistoryError, match=r"unable to open database file: make the file .* writable"):
        History(tmp_path)


def test_a_closed_history_may_be_closed_again(history: History) -> None:
    history.close()
    history.close()
    with pytest.raises(HistoryError, match="closed"):
        history.segments()


def test_writer_writes_what_is_queued_when_it_closes(path: Path) -> None:
    writer = HistoryWriter(path, every_s=3600.0)
    records = numbered(2500)
    for record in records:
        writer.put(record)
    writer.close(60.0)
    assert writer.dropped == 0
    with History(path) as history:
        assert history.segments() == records


def test_writer_writes_while_it_runs(path: Path, history: History) -> None:
    writer = HistoryWriter(path, every_s=0.001)
    writer.put(SEGMENT)
    wait_until(lambda: len(history.segments()) == 1)
    writer.put(replace(SEGMENT, number=1))
    wait_until(lambda: numbers(history) == [0, 1])
    writer.close(60.0)


def test_writer_prunes_when_it_starts(path: Path, history: History) -> None:
    history.add(numbered(10))
    writer = HistoryWriter(path, keep=4)
    writer.put(replace(SEGMENT, number=10))
    writer.close(60.0)
    assert numbers(history) == [6, 7, 8, 9, 10]


def test_a_closed_writer_drops(path: Path) -> None:
    writer = HistoryWriter(path)
    writer.close(60.0)
    writer.close(60.0)
    writer.put(SEGMENT)
    assert writer.dropped == 1
    with History(path) as history:
        assert history.segments() == []


def test_writer_that_cannot_write_keeps_what_fits_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("file").touch()
    writer = HistoryWriter(tmp_path / "file" / "history.sqlite3", every_s=0.0001)
    for record in numbered(CAPACITY + 5):
        writer.put(record)
    assert writer.dropped == 5
    wait_until(lambda: bool(caplog.messages))
    writer.close(60.0)
    assert writer.dropped == CAPACITY + 5
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("nothing is recorded until this is solved: ")
    assert str(tmp_path / "file" / "history.sqlite3") in caplog.messages[0]


def test_writer_goes_on_when_it_can_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "state"
    folder.touch()
    writer = HistoryWriter(folder / "history.sqlite3", every_s=0.001)
    records = numbered(3)
    for record in records:
        writer.put(record)
    wait_until(lambda: len(caplog.messages) == 1)
    folder.unlink()
    wait_until(lambda: len(caplog.messages) == 2)
    writer.close(60.0)
    assert caplog.messages[1] == f"{folder / 'history.sqlite3'}: recording again; 0 records were dropped"
    with History(folder / "history.sqlite3") as history:
        assert history.segments() == records


def test_put_and_close_do_not_wait_for_a_locked_file(path: Path, history: History) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = HistoryWriter(path, every_s=0.001)
        started = time.monotonic()
        for record in numbered(CAPACITY + 5):
            writer.put(record)
        writer.close(0.1)
        # The writer itself waits 5 s for the lock.
        assert time.monotonic() - started < 4.0
        assert writer.dropped == 5
    writer.close(60.0)
    assert len(history.segments()) == CAPACITY


def test_writer_drops_what_no_column_takes_and_goes_on(
    path: Path, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    writer = HistoryWriter(path, every_s=0.001)
    writer.put(replace(SEGMENT, decode_s=math.nan))
    wait_until(lambda: writer.dropped == 1)
    writer.put(SEGMENT)
    writer.close(60.0)
    assert history.segments() == [SEGMENT]
    assert len(caplog.messages) == 1
    assert "1 records dropped: a record cannot be stored" in caplog.messages[0]


def test_writer_is_not_stopped_by_a_newer_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    writer = HistoryWriter(path)
    writer.put(SEGMENT)
    writer.close(60.0)
    assert writer.dropped == 1
    assert "upgrade astraea-local" in caplog.text


def test_writer_begins_anew_when_the_file_breaks_under_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with History(path) as history:
        history.add(numbered(1000))
    writer = HistoryWriter(path, every_s=0.001)
    wait_until(lambda: path.with_name(f"{path.name}-wal").exists())
    spoil_all(path)
    writer.put(SEGMENT)
    aside = path.with_name(f"{path.name}.broken-1")
    wait_until(aside.exists)
    writer.close(60.0)
    with History(path) as history:
        assert history.segments() == [SEGMENT]
