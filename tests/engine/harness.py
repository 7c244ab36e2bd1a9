"""A core over a small model in the test's own process, and what came out of it."""

import time
from collections.abc import Callable

import numpy as np

from astraea_local.engine.binding import Context, Model, Vocab
from astraea_local.engine.core import EngineCore
from astraea_local.engine.kv.tiers import Tiers, open_tiers
from astraea_local.engine.kv.transfer import Form
from astraea_local.engine.messages import Failed, Finished, Submit, ToFront
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.worker import context_params
from astraea_local.profile import Profile

GREEDY = SamplingParams(temperature=0)


class Harness:
    """A core with its context, and what came out of it."""

    def __init__(self, model: Model, profile: Profile, vocab: Vocab | None = None) -> None:
        """`vocab`: of a model that outlives this one."""
        self.model, self.core_profile = model, profile
        self.context = Context(model, context_params(profile, model.model_class, model.n_ctx_train))
        self.ahead_s = 0.0
        """How far the core's clock is ahead of the real one."""
        disk = bool(profile.retention.disk_path)
        self.core = EngineCore(
            model,
            self.context,
            profile,
            vocab=vocab,
            open_tiers=self._tiers if disk else None,
            clock=lambda: time.monotonic() + self.ahead_s,
        )
        self.messages: list[ToFront] = []
        self._next = 0

    def _tiers(self, form: Form, note: Callable[[str], None]) -> Tiers:
        return open_tiers(self.core_profile, self.model.path, self.context, form, on_gpu=False, note=note)

    def close(self) -> None:
        self.core.close()
        self.context.close()

    def tokens(self, text: str) -> list[int]:
        return list(map(int, self.model.vocab.tokenize(text, add_special=True, parse_special=True)))

    def submit(self, job: str, prompt: list[int], count: int = 8, **fields: object) -> int:
        """Queues a segment and returns its id."""
        self._next += 1
        request = {"sampling": GREEDY, "ignore_eos": True, **fields}
        self.core.submit(
            Submit(self._next, job, np.array(prompt, dtype=np.int32), count, **request)  # type: ignore[arg-type]
        )
        return self._next

    def run(self, steps: int = 5000) -> None:
        """Steps until nothing is left to do."""
        for _ in range(steps):
            if not self.core.busy:
                break
            self.core.step()
            self.messages += self.core.take_messages()
        self.messages += self.core.take_messages()
        assert not self.core.busy, "the core never came to an end"

    def finished(self, segment: int) -> Finished:
        (found,) = [m for m in self.messages if isinstance(m, Finished) and m.segment == segment]
        return found

    def failed(self, segment: int) -> Failed:
        (found,) = [m for m in self.messages if isinstance(m, Failed) and m.segment == segment]
        return found

    def ask(self, job: str, prompt: list[int], count: int = 8, **fields: object) -> Finished:
        """One segment, alone, to its end."""
        segment = self.submit(job, prompt, count, **fields)
        self.run()
        return self.finished(segment)


MakeHarness = Callable[..., Harness]


def prompt(seed: int, length: int) -> list[int]:
    """Random tokens that every tiny model knows."""
    return list(map(int, np.random.default_rng(seed).integers(5, 250, length)))
