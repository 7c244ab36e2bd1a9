"""What is parked, as a tree: conversations share the parts they begin with.

A part is a stretch of tokens with their KV, stored once. It hangs from the part before it at token `start`,
which may lie in the middle of that part: a conversation that went on differently there needs nothing split.
What a job has parked is a path from the root; its next snapshot is one more part at the end of it.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from astraea_local.engine.binding import Bytes, Tokens
from astraea_local.engine.slots import common_prefix


@dataclass(slots=True, eq=False)
class Part:
    """Tokens [start, end) of a conversation and where their KV is."""

    id: str
    parent: "Part | None"
    start: int
    tokens: Tokens
    size: int
    """Bytes of its state."""
    last_used: float
    buffer: Bytes | None = None
    """Its copy in RAM; the state begins at `offset`."""
    offset: int = 0
    on_disk: bool = False
    sinking: bool = False
    """Its RAM copy is to be given up as soon as it is on disk."""
    refused_until: float = -math.inf
    """The disk had no room for it, and is not asked again before."""
    busy: int = 0
    """Reads, writes and moves under way: the buffer must stay."""
    children: list["Part"] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)
    """Jobs whose parked state ends in it."""

    @property
    def end(self) -> int:
        """Tokens up to its end."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, end) of a part, in positions of the conversation."""

    part: Part
    start: int
    end: int

    @property
    def size(self) -> int:
        """Its share of the part's bytes."""
        return self.part.size * (self.end - self.start) // max(1, len(self.part.tokens))


def part_id(parent: str, start: int, tokens: Tokens) -> str:
    """Address by content: 32 hex digits that name these tokens behind these others."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{parent} {start} ".encode())
    digest.update(np.ascontiguousarray(tokens, dtype=np.int32).tobytes())
    return digest.hexdigest()


class PartTree:
    """All parts, and which job's state ends where."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._roots: list[Part] = []
        self._ends: dict[str, tuple[Part, int]] = {}

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts.values())

    def __len__(self) -> int:
        return len(self.parts)

    def add(self, parent: Part | None, start: int, tokens: Tokens, size: int, now: float) -> Part:
        """A new part without data; the one that is there already when it has the same content."""
        key = part_id("" if parent is None else parent.id, start, tokens)
        known = self.parts.get(key)
        if known is not None:
            return known
        part = Part(key, parent, start, tokens.copy(), size, now)
        self.parts[key] = part
        (self._roots if parent is None else parent.children).append(part)
        return part

    def remove(self, part: Part) -> list[Part]:
        """Takes a part and all that hangs from it out; returns them, deepest last."""
        (self._roots if part.parent is None else part.parent.children).remove(part)
        gone = [part]
        for each in gone:
            gone.extend(each.children)
            del self.parts[each.id]
            for job in each.owners:
                del self._ends[job]
            each.owners.clear()
        return gone

    def match(self, prompt: Tokens) -> tuple[Part | None, int]:
        """The part in which the longest known prefix of `prompt` ends, and that prefix's length."""
        best: tuple[Part | None, int] = (None, 0)
        waiting = [(part, 0) for part in self._roots]
        while waiting:
            part, _reached = waiting.pop()
            rest = prompt[part.start :]
            # The first token tells most siblings apart without looking at the rest.
            if not len(rest) or part.tokens[0] != rest[0]:
                continue
            length = part.start + common_prefix(part.tokens, rest)
            if length > best[1]:
                best = (part, length)
            waiting.extend((child, length) for child in part.children if child.start <= length)
        return best

    def whole(self, prompt: Tokens) -> tuple[Part | None, int]:
        """The longest part that is a state of its own and a prefix of `prompt` in full."""
        best: tuple[Part | None, int] = (None, 0)
        for part in self._roots:
            if best[1] < len(part.tokens) == common_prefix(part.tokens, prompt):
                best = (part, len(part.tokens))
        return best

    def own(self, job: str | None, part: Part, length: int) -> None:
        """The job's state now ends at token `length`, inside `part`; an earlier state of it is superseded."""
        if job is None:
            return
        self.disown(job)
        part.owners.add(job)
        self._ends[job] = (part, length)

    def disown(self, job: str) -> Part | None:
        """The job has no state of its own any more; returns the part in which it ended."""
        part, _length = self._ends.pop(job, (None, 0))
        if part is not None:
            part.owners.discard(job)
        return part

    def end_of(self, job: str) -> tuple[Part, int] | None:
        """Where the job's state ends: the part, and the number of tokens."""
        return self._ends.get(job)

    def jobs(self) -> Iterator[tuple[str, Part, int]]:
        """Every job that has a parked state: its last part and its length."""
        for job, (part, length) in self._ends.items():
            yield job, part, length


def path(part: Part, length: int) -> list[Piece]:
    """The pieces, in order, that make up the first `length` tokens of the conversation through `part`."""
    pieces = []
    end = length
    at: Part | None = part
    while at is not None:
        if end > at.start:
            pieces.append(Piece(at, at.start, end))
        end = min(end, at.start)
        at = at.parent
    return pieces[::-1]
