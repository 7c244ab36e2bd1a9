"""Requests for embeddings, computed a batch at a time between the engine's steps, whose streams go on."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from astraea_local.engine.binding import BindingError, ContextParams, Pooler, Vector
from astraea_local.engine.elastic import Elastic
from astraea_local.engine.messages import Embed, Reply


@dataclass(slots=True, eq=False)
class _Work:
    question: Embed
    vectors: list[Vector] = field(default_factory=list)


class Embedder:
    """What is to be embedded, in the order in which it came; requests take turns after each input."""

    def __init__(self, elastic: Elastic, params: ContextParams, n_embd: int) -> None:
        """`params` are those of the context that embeds; without `pooling` there are no embeddings."""
        self._elastic = elastic
        self._params = params
        self.size, self.tokens = (0, 0) if params.pooling is None else (n_embd, params.n_ctx)
        """Numbers in an embedding, and tokens that an input may have."""
        self._pending: deque[_Work] = deque()
        self._begun: Pooler | None = None
        """Where the next input of the first request is under way; memory given back may have closed it."""

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._pending)

    def ask(self, question: Embed) -> None:
        """Queues a request; `step` answers it."""
        self._pending.append(_Work(question))

    def withdraw(self, request: int) -> None:
        """Forgets a request that nobody waits for, if it is still there."""
        if self._pending and self._pending[0].question.request == request:
            self._begun = None
        self._pending = deque(work for work in self._pending if work.question.request != request)

    def step(self) -> Reply | None:
        """Computes a batch of one input; the answer to its request when that is complete, or cannot be."""
        work = self._pending[0]
        request, inputs = work.question.request, work.question.inputs
        try:
            vector = self._advance(work)
        except BindingError as error:
            self._begun = None
            self._pending.popleft()
            return Reply(request, "unavailable", str(error))
        if vector is None:
            return None
        self._begun = None
        work.vectors.append(vector)
        self._pending.popleft()
        if len(work.vectors) < len(inputs):
            self._pending.append(work)
            return None
        data = np.stack(work.vectors).tobytes()
        return Reply(request, "done", f"embedded {len(inputs)} inputs", data)

    def _advance(self, work: _Work) -> Vector | None:
        pooler = self._elastic.pooler(self._params)
        if self._begun is not pooler:
            pooler.start(work.question.inputs[len(work.vectors)])
            self._begun = pooler
        return pooler.advance()
