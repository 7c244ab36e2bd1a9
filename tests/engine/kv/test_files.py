"""One file: it comes back exactly, or is refused for a reason."""

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.engine.kv import files
from astraea_local.engine.kv.files import (
    Bytes,
    ModelIdentity,
    PartHeader,
    StateFileError,
    StoredPart,
    check_state,
    encode,
    file_length,
    read_header,
    read_state,
    write,
)
from tests.engine.kv.states import IDENTITY, part, part_id


def _written(path: Path, header: PartHeader, data: Bytes, identity: ModelIdentity = IDENTITY) -> bytes:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write(descriptor, encode(header, identity, "model.gguf"), data.data, lambda: False)
    finally:
        os.close(descriptor)
    return path.read_bytes()


def _read(path: Path) -> tuple[StoredPart, Bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = read_header(descriptor)
        state = np.zeros(found.header.size, np.uint8)
        read_state(descriptor, found, state, lambda: False)
    finally:
        os.close(descriptor)
    return found, state


@given(
    tokens=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50),
    size=st.sampled_from([0, 1, 7, 4096, (1 << 19) - 1, 1 << 19, (1 << 20) + 3]),
    start=st.integers(0, 2**40),
    job=st.text(max_size=30),
    used_at=st.floats(allow_nan=False, allow_infinity=False),
    is_root=st.booleans(),
)
def test_everything_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[int],
    size: int,
    start: int,
    job: str,
    used_at: float,
    is_root: bool,
) -> None:
    path = tmp_path_factory.mktemp("files") / "x.kv"
    parent = "" if is_root else part_id(1)
    _, data = part(5, size)
    header = PartHeader(part_id(2), parent, start, np.array(tokens, np.int32), size, job, used_at)
    whole = _written(path, header, data)
    found, state = _read(path)
    assert np.array_equal(state, data)
    assert found.header.tokens.tolist() == tokens
    for name in ("id", "parent", "start", "size", "job", "used_at"):
        assert getattr(found.header, name) == getattr(header, name)
    assert (found.identity, found.model) == (IDENTITY, "model.gguf")
    assert len(whole) == found.length == file_length(encode(header, IDENTITY, "model.gguf"), size)


def test_a_file_is_refused_however_short_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    header, data = part(1, 3000)
    whole = _written(path, header, data)
    state_at = len(whole) - 3000 - 8
    lengths = {0, 1, 7, 8, 9, 11, 12, 31, 32, 39, 40, 41, state_at - 29, state_at - 1, state_at}
    for length in sorted(lengths | {state_at + 1, len(whole) - 9, len(whole) - 8, len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(StateFileError):
            _read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(StateFileError, match=f"{len(whole) + 1} bytes instead of {len(whole)}"):
        _read(path)


@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("files") / "x.kv"
    whole = bytearray(_written(path, *part(1, 500)))
    where = data.draw(st.integers(0, len(whole) - 1))
    whole[where] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with pytest.raises(StateFileError):
        _read(path)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (0, "not a KV state"),
        (9, "format version 257, this is version 1"),
        (60, "damaged header"),
        (-3020 - 8, "damaged header"),
        (-1500, "damaged state"),
        (-1, "damaged state"),
    ],
    ids=["magic", "version", "json", "tokens", "state", "checksum"],
)
def test_what_is_damaged_is_said(tmp_path: Path, where: int, reason: str) -> None:
    path = tmp_path / "x.kv"
    whole = bytearray(_written(path, *part(1, 3000)))
    whole[where] ^= 1
    path.write_bytes(whole)
    with pytest.raises(StateFileError, match=reason):
        _read(path)


def test_huge_numbers_in_a_damaged_header_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    whole = bytearray(_written(path, *part(1, 100)))
    struct.pack_into("<Q", whole, 16, 2**62)
    path.write_bytes(whole)
    with pytest.raises(StateFileError, match="instead of"):
        _read(path)


def test_a_state_under_another_header_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.kv", tmp_path / "b.kv"
    header, data = part(1, 1000)
    one = _written(first, header, data)
    two = _written(second, replace(header, id=part_id(2)), data[::-1].copy())
    second.write_bytes(two[: -1000 - 8] + one[-1000 - 8 :])
    with pytest.raises(StateFileError, match="damaged state"):
        _read(second)


def test_a_state_is_checked_without_a_buffer_for_it(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    whole = bytearray(_written(path, *part(1, 2_000_000)))
    for damage in (0, 1):
        whole[-1_000_000] ^= damage
        path.write_bytes(whole)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            found = read_header(descriptor)
            if damage:
                with pytest.raises(StateFileError, match="damaged state"):
                    check_state(descriptor, found)
            else:
                check_state(descriptor, found)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "../../etc/passwd"}, "id"),
        ({"id": "AB" * 16}, "id"),
        ({"parent": "x"}, "parent"),
        ({"start": -1}, "start"),
        ({"size": -1}, "size"),
        ({"used_at": float("nan")}, "used_at"),
        ({"used_at": float("inf")}, "used_at"),
        ({"job": "x" * (2 << 20)}, "job"),
    ],
)
def test_a_header_that_cannot_be_is_not_written(change: dict[str, object], field: str) -> None:
    header, _ = part(1)
    with pytest.raises(ValueError, match=field):
        encode(replace(header, **change), IDENTITY, "")  # type: ignore[arg-type]


def test_a_read_can_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    _written(path, *part(1, 2_000_000))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = read_header(descriptor)
        with pytest.raises(StateFileError, match="given up"):
            read_state(descriptor, found, np.zeros(2_000_000, np.uint8), lambda: True)
    finally:
        os.close(descriptor)


def test_identities_that_differ_anywhere_have_folders_of_their_own() -> None:
    changes: list[dict[str, object]] = [
        {"fingerprint": "other"},
        {"type_k": "q8_0"},
        {"type_v": "f16"},
        {"v_transposed": True},
        {"form": "whole"},
        {"layout": "unified/1"},
        {"llama_cpp": "0.3.37"},
    ]
    identities = [IDENTITY] + [replace(IDENTITY, **change) for change in changes]  # type: ignore[arg-type]
    assert len({identity.folder for identity in identities}) == len(identities)
    assert replace(IDENTITY).folder == IDENTITY.folder


def test_the_format_is_what_it_was(tmp_path: Path) -> None:
    """States of an earlier run of the same version have to be found."""
    whole = _written(tmp_path / "x.kv", *part(1, 4))
    assert len(whole) % 4096 == 4 + 8  # the state begins with a page
    assert whole[:16] == b"ASTRAEKV" + struct.pack("<II", files.VERSION, len(whole) - 40 - 7 * 4 - 4 - 8)
    assert IDENTITY.folder == "cacabe728dd73e564a42224d26b7b0bb"
    assert whole[-8:].hex() == "2bda256f6505bd97"
