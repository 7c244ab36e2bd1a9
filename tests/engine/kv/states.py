"""Parts with states of noise, and disks that refuse, for the tests of what keeps them."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from time import monotonic, sleep

import numpy as np
import pytest

from astraea_local.engine.kv.disk import DiskStore, Event
from astraea_local.engine.kv.files import Bytes, ModelIdentity, PartHeader

IDENTITY = ModelIdentity("f" * 16, "f16", "q8_0", False, "rows", "any", "0.3.36")
OTHER = replace(IDENTITY, fingerprint="0" * 16)


def part_id(number: int) -> str:
    """An id like any other."""
    return blake2b(str(number).encode(), digest_size=16).hexdigest()


def part(
    number: int, size: int = 5000, *, tokens: int = 7, parent: str = "", job: str = "coder", at: float = 1e9
) -> tuple[PartHeader, Bytes]:
    """A part and its state, the same for the same number."""
    noise = np.random.default_rng(number)
    header = PartHeader(
        part_id(number), parent, 3, noise.integers(0, 32_000, tokens).astype(np.int32), size, job, at
    )
    return header, noise.integers(0, 256, size).astype(np.uint8)


def settle(store: DiskStore, seconds: float = 30.0) -> list[Event]:
    """Everything that the store reports until nothing is pending."""
    events = store.poll()
    until = monotonic() + seconds
    while store.pending:
        assert monotonic() < until, "the store does not answer"
        sleep(0.001)
        events += store.poll()
    return events


def no_space_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the disk takes the beginning of a file and no more."""
    original = os.write

    def write(descriptor: int, data: memoryview) -> int:
        if len(data) > 5000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(descriptor, data)

    monkeypatch.setattr(os, "write", write)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on files can be read and nothing else; permissions would not stop root."""

    def refuse() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("open", "chmod", "utime", "unlink"):
        original = getattr(os, name)

        def guarded(
            path: object, *rest: int, original: Callable[..., object] = original, name: str = name
        ) -> object:
            if name != "open" or (rest and rest[0] & os.O_CREAT):
                refuse()
            return original(path, *rest)

        monkeypatch.setattr(os, name, guarded)
