"""What lies in the folder of parked states, of all models, and its removal; with or without a server.

A running server notices that a file has gone when it wants to read it, and computes the state again.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from astraea_local.engine.kv import files
from astraea_local.engine.kv.files import StateFileError
from astraea_local.engine.kv.folder import SUFFIX, FoundFile, scan


class SelectionError(Exception):
    """What was asked for names nothing, or too much; one line fit for a user."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    path: Path
    id: str
    """By its name where the header cannot be read."""
    model: str
    """The model file's name, empty when not known."""
    job: str
    tokens: int
    start: int
    """Tokens before its own on its path."""
    parent: str
    bytes: int
    used_at: float
    """Unix time of the last use."""
    problem: str
    """Why no server can use it; empty when one can."""


def survey(root: Path, *, check: bool = False) -> list[Entry]:
    """Every state under `root`, the last used first. `check` reads the states too, not only the headers."""
    found = [_entry(file, check) for file in scan(root) if file.path.suffix == SUFFIX]
    present = {(entry.path.parent, entry.id) for entry in found if not entry.problem}
    return sorted(
        (_rooted(entry, present) for entry in found),
        key=lambda entry: (-entry.used_at, entry.path.as_posix()),
    )


def select(
    entries: Sequence[Entry],
    *,
    ids: Sequence[str] = (),
    job: str | None = None,
    unused_since: float | None = None,
    unusable: bool = False,
) -> list[Entry]:
    """The entries that all given conditions name, and those that are of no use without them.

    `ids` are beginnings of ids, each of one id only. Raises `SelectionError`.
    """
    wanted = {_complete(entries, prefix) for prefix in ids}
    chosen = [
        entry
        for entry in entries
        if (not ids or entry.id in wanted)
        and (job is None or entry.job == job)
        and (unused_since is None or entry.used_at < unused_since)
        and (not unusable or entry.problem)
    ]
    return _with_descendants(entries, chosen)


def remove(entries: Iterable[Entry]) -> tuple[list[Entry], list[str]]:
    """Removes files, and folders that are empty then; returns what was removed, and the errors."""
    removed, errors = [], []
    for entry in entries:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            errors.append(f"{entry.path}: {error.strerror}")
        else:
            removed.append(entry)
    for folder in {entry.path.parent for entry in removed}:
        with suppress(OSError):
            folder.rmdir()
    return removed, errors


def _entry(file: FoundFile, check: bool) -> Entry:
    unknown = Entry(file.path, file.path.stem, "", "", 0, 0, "", file.size, file.used_at, "")
    try:
        descriptor = os.open(file.path, os.O_RDONLY)
        try:
            part = files.read_header(descriptor)
            known = replace(
                unknown,
                model=part.model,
                job=part.header.job,
                tokens=len(part.header.tokens),
                start=part.header.start,
                parent=part.header.parent,
            )
            if part.header.id != file.path.stem:
                return replace(known, problem="under another part's name")
            if part.identity.folder != file.path.parent.name:
                return replace(known, problem="in another model's folder")
            unknown = known
            if check:
                files.check_state(descriptor, part)
        finally:
            os.close(descriptor)
    except StateFileError as error:
        return replace(unknown, problem=str(error))
    except OSError as error:
        return replace(unknown, problem=error.strerror or repr(error))
    return known


def _rooted(entry: Entry, present: set[tuple[Path, str]]) -> Entry:
    if entry.parent and not entry.problem and (entry.path.parent, entry.parent) not in present:
        return replace(entry, problem="the part before it is not on disk")
    return entry


def _complete(entries: Sequence[Entry], prefix: str) -> str:
    matches = {entry.id for entry in entries if entry.id.startswith(prefix.lower())}
    if not matches or not prefix:
        raise SelectionError(f"no state's id begins with {prefix!r}: see `astraea-local kv ls`")
    if len(matches) > 1:
        raise SelectionError(f"{len(matches)} states' ids begin with {prefix!r}: give more digits")
    return matches.pop()


def _with_descendants(entries: Sequence[Entry], chosen: Sequence[Entry]) -> list[Entry]:
    gone = {(entry.path.parent, entry.id) for entry in chosen}
    before = -1
    while len(gone) > before:
        before = len(gone)
        gone |= {(e.path.parent, e.id) for e in entries if e.parent and (e.path.parent, e.parent) in gone}
    return [entry for entry in entries if (entry.path.parent, entry.id) in gone]
