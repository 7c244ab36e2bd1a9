"""Embeddings: an input's tokens become one vector, in a context beside the one that generates."""

import numpy as np

from astraea_local.engine.binding.context import Batch, Context, ContextParams
from astraea_local.engine.binding.library import BindingError, Handle, Tokens, Vector
from astraea_local.engine.binding.model import Model, Pooling


class Pooler(Handle):
    """Computes one input at a time, a batch of it at each call, and pools over all of them.

    llama.cpp pools within an ubatch, and computes the logits of each of its tokens as well: with long inputs
    as ubatches those alone would take gigabytes.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        """`params` has a `pooling`, one sequence, and `n_batch` equal to `n_ubatch`.

        Raises `BindingError` when memory does not suffice.
        """
        self._context = Context(model, params)
        self._batch = Batch(params.n_ubatch)
        self._tokens: Tokens = np.empty(0, np.int32)
        self._done = 0
        self._sum: Vector = np.zeros(model.n_embd, np.float32)

    def close(self) -> None:
        self._batch.close()
        self._context.close()

    def start(self, tokens: Tokens) -> None:
        """Begins with an input of 1 to `n_ctx` tokens; what was left of another one is forgotten."""
        self._context.clear()
        self._tokens, self._done = tokens, 0
        self._sum[:] = 0

    def advance(self) -> Vector | None:
        """Computes a batch (`llama_decode`). After the last one: the input's vector, of length 1.

        Its shape is (n_embd,). Raises `BindingError` when llama.cpp cannot compute the input.
        """
        part = self._tokens[self._done : self._done + self._batch.capacity]
        self._batch.clear()
        self._batch.add(part, self._done, 0, last_logits=True)
        self._batch.want_all()
        status = self._context.decode(self._batch)
        if status != 0:
            raise BindingError(f"llama.cpp could not compute the embedding (llama_decode: {status})")
        self._pool(self._context.embedding(0), len(part))
        self._done += len(part)
        if self._done < len(self._tokens):
            return None
        length = float(np.linalg.norm(self._sum))
        if not 0 < length < np.inf:
            raise BindingError("the model's outputs for this input have no direction (zero or not finite)")
        return self._sum / np.float32(length)

    def _pool(self, pooled: Vector, tokens: int) -> None:
        match self._context.params.pooling:
            case Pooling.MEAN:
                # A sum has the direction of the mean.
                self._sum += pooled * np.float32(tokens)
            case Pooling.CLS:
                if self._done == 0:
                    self._sum[:] = pooled
            case _:
                self._sum[:] = pooled
