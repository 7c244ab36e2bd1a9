"""A context with a conversation in it, for tests that take the conversation out and put it back."""

from dataclasses import dataclass

import numpy as np

from astraea_local.engine.binding import Batch, Context, ContextParams, Logits, Model, Tokens
from astraea_local.engine.kv.arena import BufferArena
from astraea_local.engine.kv.parts import Part, PartTree
from astraea_local.engine.kv.transfer import Transfer

SLOTS = 4


def tokens(seed: int, count: int) -> Tokens:
    """Random token ids that every tiny model knows."""
    return np.random.default_rng(seed).integers(5, 250, count).astype(np.int32)


@dataclass
class Rig:
    """One context, its batch, and the way in and out of it."""

    context: Context
    batch: Batch
    transfer: Transfer
    tree: PartTree

    @property
    def unified(self) -> bool:
        return self.context.params.unified

    def compute(self, seq: int, what: Tokens) -> Logits:
        """Appends tokens to a sequence; the logits behind the last one."""
        self.batch.clear()
        index = self.batch.add(what, self.context.seq_end(seq), seq, last_logits=True)
        assert self.context.decode(self.batch) == 0
        return self.context.logits(index).copy()

    def save(self, seq: int, what: Tokens, start: int, parent: Part | None) -> Part:
        """Keeps the tokens from `start` to the end of `what`, which is the whole sequence, as a part."""
        saved = self.transfer.save(seq, start, len(what))
        assert saved is not None
        part = self.tree.add(parent, start, what[start:], saved.size, 0.0)
        part.buffer, part.offset = saved.buffer, saved.offset
        return part

    def close(self) -> None:
        self.batch.close()
        self.context.close()


def rig(
    model: Model,
    *,
    unified: bool,
    kv_type: str = "f16",
    flash: str = "on",
    slots: int = SLOTS,
    rows: bool = True,
) -> Rig:
    """A small context; unified ones have one sequence more, through which stretches are moved."""
    params = ContextParams(
        n_ctx=256 * slots,
        n_seq=slots + unified,
        unified=unified,
        flash_attention=flash,
        type_k=kv_type,
        type_v=kv_type,
    )
    context = Context(model, params)
    spare = slots if unified and rows else None
    transfer = Transfer(context, BufferArena(1 << 28), by_rows=rows, spare=spare)
    return Rig(context, Batch(256), transfer, PartTree())
