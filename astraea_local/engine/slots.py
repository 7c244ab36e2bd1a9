"""The sequences of a context: what KV each one holds, who uses it, and prefix reuse between them.

llama.cpp's word is sequence id. In the per-slot layout each has its own stream of cells and there are as many
as slots; in the unified layout all share one pool, and more sequences than slots keep idle jobs
resident. Both behave the same to the caller.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from astraea_local.engine.binding import Context, ModelClass, Tokens


class TokenBuffer:
    """A growing array of token ids, compared and sliced without Python loops."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._data = np.empty(64, dtype=np.int32)
        self._length = 0
        if tokens is not None:
            self.extend(tokens)

    def __len__(self) -> int:
        return self._length

    def view(self, start: int = 0, end: int | None = None) -> Tokens:
        """Tokens [start, end) without a copy; valid until the buffer grows."""
        return self._data[start : self._length if end is None else min(end, self._length)]

    def extend(self, tokens: Tokens) -> None:
        needed = self._length + len(tokens)
        if needed > len(self._data):
            grown = np.empty(max(needed, 2 * len(self._data)), dtype=np.int32)
            grown[: self._length] = self.view()
            self._data = grown
        self._data[self._length : needed] = tokens
        self._length = needed

    def append(self, token: int) -> None:
        if self._length == len(self._data):
            self._data = np.resize(self._data, 2 * len(self._data))
        self._data[self._length] = token
        self._length += 1

    def trim(self, length: int) -> None:
        self._length = min(self._length, length)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that are equal."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return n if n == 0 or not different[first] else first


class CellLedger:
    """Counts the cells of a unified pool, in which sequences share prefixes by reference.

    A run is a stretch of cells that was computed once. Each sequence is a list of runs with the length it
    uses of each; a run occupies as many cells as its longest user.
    """

    def __init__(self) -> None:
        self._runs: dict[int, dict[int, int]] = {}
        self._chains: dict[int, list[int]] = {}
        self._next = 0
        self.used = 0

    def append(self, seq: int, count: int) -> None:
        """`seq` computed `count` more tokens."""
        chain = self._chains.setdefault(seq, [])
        # A run that someone else uses too must not grow under them.
        if not chain or len(self._runs[chain[-1]]) > 1:
            chain.append(self._next)
            self._runs[self._next] = {seq: 0}
            self._next += 1
        self._runs[chain[-1]][seq] += count
        self.used += count

    def shares(self, seq: int) -> bool:
        """Whether `seq` uses cells that others use too."""
        return any(len(self._runs[run]) > 1 for run in self._chains.get(seq, []))

    def shared(self, seq: int) -> int:
        """Leading tokens of `seq` whose cells others use too."""
        count = 0
        for run in self._chains.get(seq, []):
            users = self._runs[run]
            others = max((length for user, length in users.items() if user != seq), default=0)
            count += min(users[seq], others)
            if others < users[seq]:
                break
        return count

    def share(self, source: int, target: int, count: int) -> None:
        """`target`, which must be empty, takes the first `count` tokens of `source`."""
        chain = self._chains.setdefault(target, [])
        for run in self._chains.get(source, []):
            if count <= 0:
                break
            users = self._runs[run]
            users[target] = min(count, users[source])
            count -= users[target]
            chain.append(run)

    def trim(self, seq: int, length: int) -> None:
        """`seq` keeps its first `length` tokens."""
        kept: list[int] = []
        for run in self._chains.get(seq, []):
            users = self._runs[run]
            before = max(users.values())
            keep = min(length, users[seq])
            length -= keep
            if keep:
                users[seq] = keep
                kept.append(run)
            else:
                del users[seq]
            self.used -= before - max(users.values(), default=0)
            if not users:
                del self._runs[run]
        self._chains[seq] = kept


@dataclass(slots=True, eq=False)
class Sequence:
    """One llama.cpp sequence and what is in it."""

    id: int
    tokens: TokenBuffer = field(default_factory=TokenBuffer)
    """Tokens whose KV is resident."""
    job: str | None = None
    segment: int | None = None
    """The running segment; None while idle or free."""
    last_used: float = 0.0
    floor: int = 0
    """A sliding window's earlier cells are gone before this: no shorter prefix can be taken from it."""
    reserved: bool = False
    """A state is being restored into it."""


class SequenceTable:
    """Every change of the context's memory goes through here, so that the record is never wrong."""

    def __init__(self, context: Context, count: int, model_class: ModelClass) -> None:
        """`count` may be less than the context has: what is beyond belongs to someone else."""
        self._context = context
        self.trimmable = model_class.can_trim
        self._windowed = model_class is ModelClass.SWA
        self.unified = context.params.unified
        self.sequences = [Sequence(i) for i in range(count)]
        self._ledger = CellLedger()
        self._highest = 0
        self.promised = 0
        """Cells of a common pool that states on their way back will still take."""

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)

    @property
    def cells_total(self) -> int:
        return self._context.n_ctx

    @property
    def cells_used(self) -> int:
        if self.unified:
            return self._ledger.used
        return sum(len(s.tokens) for s in self.sequences)

    @property
    def cells_free(self) -> int:
        """Free cells of the common pool that are not promised; meaningless in the per-slot layout."""
        return self.cells_total - self._ledger.used - self.promised

    @property
    def span(self) -> int:
        """Cells of the common pool up to the highest that may be in use: attention goes over all of them."""
        return max(self._highest, self._ledger.used)

    def compacted(self) -> None:
        """What is in use was moved to the lowest cells."""
        self._highest = self._ledger.used

    def shares(self, sequence: Sequence) -> bool:
        """Whether cells of this sequence belong to others too."""
        return self.unified and self._ledger.shares(sequence.id)

    def shared_tokens(self, sequence: Sequence) -> int:
        """Leading tokens of this sequence whose cells others use too."""
        return self._ledger.shared(sequence.id) if self.unified else 0

    def idle(self) -> list[Sequence]:
        """Sequences that hold KV and are not running."""
        return [s for s in self.sequences if s.segment is None and len(s.tokens) and not s.reserved]

    def free(self) -> Sequence | None:
        """An empty sequence, if any: next to a running one if there is such, see `Batcher`."""
        unused = [s for s in self.sequences if s.segment is None and not len(s.tokens) and not s.reserved]
        running = {s.id for s in self.sequences if s.segment is not None}
        return min(unused, key=lambda s: running.isdisjoint((s.id - 1, s.id + 1)), default=None)

    def fillable(self) -> list[Sequence]:
        """Sequences of the per-slot layout that nobody runs in, and to which a token may be lent."""
        if self.unified or self._windowed or not self.trimmable:
            return []
        unused = [s for s in self.sequences if s.segment is None and not s.reserved]
        return [s for s in unused if len(s.tokens) < self._context.n_ctx_seq]

    def take_out(self, sequence: Sequence) -> None:
        """Removes what a decode put behind the sequence's own tokens."""
        self._context.seq_rm(sequence.id, len(sequence.tokens), -1)

    def usable_prefix(self, sequence: Sequence, prompt: Tokens) -> int:
        """Leading tokens of `prompt` that can be taken from this sequence.

        The last prompt token is always computed, because its logits are needed. Models that cannot trim
        give all of their state or nothing.
        """
        common = common_prefix(sequence.tokens.view(), prompt)
        limit = len(prompt) - 1
        if not self.trimmable:
            return common if common == len(sequence.tokens) <= limit else 0
        length = min(common, limit)
        return length if length >= sequence.floor else 0

    def append(self, sequence: Sequence, tokens: Tokens) -> None:
        """Records tokens that a decode has just put into the sequence."""
        sequence.tokens.extend(tokens)
        if self.unified:
            self._ledger.append(sequence.id, len(tokens))
            self._highest = max(self._highest, self._ledger.used)

    def trim(self, sequence: Sequence, length: int) -> None:
        """Keeps the first `length` tokens; clears the sequence when the model cannot keep a part."""
        if length >= len(sequence.tokens):
            return
        if length < max(1, sequence.floor) or not self._context.seq_rm(sequence.id, length, -1):
            self._context.seq_rm(sequence.id)
            length = 0
        sequence.tokens.trim(length)
        if self.unified:
            self._ledger.trim(sequence.id, length)
            if not self._ledger.used:
                self._highest = 0
        if length == 0:
            sequence.job, sequence.floor = None, 0

    def clear(self, sequence: Sequence) -> None:
        """Empties the sequence."""
        self.trim(sequence, 0)

    def copy(self, source: Sequence, target: Sequence, length: int) -> None:
        """Gives the empty `target` the first `length` tokens of `source`.

        Unified: by reference. Per-slot: llama.cpp can only copy whole streams, so the tail is cut afterwards.
        """
        if self.unified:
            self._context.seq_cp(source.id, target.id, 0, length)
            self._ledger.share(source.id, target.id, length)
            target.tokens = TokenBuffer(source.tokens.view(0, length))
            target.floor = source.floor
            return
        self._context.seq_cp(source.id, target.id)
        target.tokens, target.floor = TokenBuffer(source.tokens.view()), source.floor
        self.trim(target, length)

    def adopt(self, sequence: Sequence, tokens: Tokens) -> None:
        """Records that the state of these tokens was restored into a sequence that was empty."""
        sequence.tokens = TokenBuffer(tokens)
        sequence.floor = len(tokens) if self._windowed else 0
        if self.unified:
            self._ledger.trim(sequence.id, 0)
            self._ledger.append(sequence.id, len(tokens))
            self._highest = max(self._highest, self._ledger.used)
