"""Recordings: what was written is read, also when the writer was killed."""

import resource
from pathlib import Path

import pytest

from astraea_local.tui.record import Recorder, RecordError, Recording, parse
from tests.tui.driving import frames, world


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_frames_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    taken = frames(world(), 5)
    with Recorder(tmp_path / name) as recorder:
        for frame in taken:
            recorder.write(frame.model_dump_json().encode())
        assert recorder.frames == 5
    with Recording(tmp_path / name) as recording:
        assert [recording.frame(i) for i in range(len(recording))] == taken
        assert recording.frame(1) == taken[1]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_recording_that_broke_off_has_its_whole_frames(tmp_path: Path, name: str) -> None:
    recorder = Recorder(tmp_path / name)
    for frame in frames(world(), 3):
        recorder.write(frame.model_dump_json().encode())
    data = (tmp_path / name).read_bytes()
    recorder.close()
    (tmp_path / name).write_bytes(data[:-20])
    with Recording(tmp_path / name) as recording:
        assert len(recording) == 2


def test_an_older_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("mine")
    with pytest.raises(RecordError, match="exists already: choose another name"):
        Recorder(tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == "mine"


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_full_disk_ends_the_recording_and_leaves_what_was_written(tmp_path: Path, name: str) -> None:
    data = frames(world(), 1)[0].model_dump_json().encode()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Recorder(tmp_path / name) as recorder:
        recorder.write(data)
        size = (tmp_path / name).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, before[1]))
        try:
            with pytest.raises(RecordError, match="recording ended: "):
                recorder.write(data)
            recorder.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert recorder.fault.startswith("recording ended: ")
    with Recording(tmp_path / name) as recording:
        assert recorder.frames == len(recording) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no complete frame"),
        (b'{"frame_version": 99}\n', "frame version 99, this program knows 2: upgrade this"),
        (b'{"frame_version": 1}\n', "upgrade the server"),
        (b"{}\n", "not a StateFrame"),
        (b"hello\n", "not a recording: make one with `astraea-local top --record`"),
        (b"[1]\n", "not a recording"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(RecordError, match=words):
        Recording(tmp_path / "r.jsonl")


def test_files_that_are_not_there_or_not_gzip(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        Recording(tmp_path / "none.jsonl")
    (tmp_path / "r.jsonl.gz").write_bytes(b"plain text\n")
    with pytest.raises(RecordError, match="not a gzip file"):
        Recording(tmp_path / "r.jsonl.gz")
    with pytest.raises(RecordError, match="cannot be written"):
        Recorder(tmp_path / "no" / "r.jsonl")


def test_a_frame_of_this_version_is_parsed() -> None:
    (frame,) = frames(world(), 1)
    assert parse(frame.model_dump_json().encode(), "here") == frame
