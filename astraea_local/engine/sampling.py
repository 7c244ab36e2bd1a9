"""From a request's sampling parameters to a token.

The order of the samplers is llama.cpp's own: bias, penalties, DRY, top-k, typical, top-p, min-p,
temperature, choice. A constraint is asked only about the chosen token first; the whole vocabulary is
filtered only when it refuses (llama.cpp's `common_sampler_sample` does the same).
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from astraea_local.engine.binding import Candidates, Grammar, Guides, Logits, SamplerChain, Tokens, Vocab

DRY_BREAKERS = ("\n", ":", '"', "*")


class GrammarDeadEnd(Exception):
    """The grammar allows no token at all; the segment must end here."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the names and neutral values are llama.cpp's."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 4096
    dry_breakers: tuple[str, ...] = DRY_BREAKERS
    seed: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)
    grammar: str | None = None
    """GBNF that the output follows."""
    guidance: str | None = None
    """The same in llguidance's Lark dialect; at most one of the two is set."""
    logprobs: int | None = None
    """Number of alternatives to report with each token; None = report nothing."""

    @property
    def penalizes(self) -> bool:
        return (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the natural logarithm of its probability before any sampler."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """One chosen token, and what else was likely when that was asked for."""

    token: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


class Constraint(Protocol):
    """What the output has to follow."""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""

    def take(self, token: int) -> bool:
        """Goes on by a token, unless it is forbidden."""

    def mask(self, candidates: Candidates) -> None:
        """Sets the logits of forbidden tokens to -inf."""


class Sampler:
    """The sampling state of one segment; survives its preemption."""

    def __init__(self, params: SamplingParams, vocab: Vocab, guides: Guides, history: Tokens) -> None:
        """`history` is the prompt, which penalties and DRY look back on. Raises `BindingError`."""
        self.params = params
        self._grammar = None if params.grammar is None else Grammar(vocab, params.grammar)
        self._constraint: Constraint | None = self._grammar
        if params.guidance is not None:
            self._constraint = guides.open(params.guidance)
        self._argmax = (
            params.temperature <= 0
            and not params.penalizes
            and params.dry_multiplier <= 0
            and not params.logit_bias
        )
        self._chain = None if self._argmax else _chain(params, vocab)
        if self._chain is not None and (params.penalizes or params.dry_multiplier > 0):
            lookback = max(
                params.repeat_last_n, params.dry_penalty_last_n if params.dry_multiplier > 0 else 0
            )
            for token in history[-lookback:].tolist() if lookback else []:
                self._chain.accept(token)

    def close(self) -> None:
        """Frees llama.cpp's samplers."""
        if self._chain is not None:
            self._chain.close()
        if self._grammar is not None:
            self._grammar.close()

    @property
    def complete(self) -> bool:
        """Whether the constraint allows nothing more."""
        return self._constraint is not None and self._constraint.complete

    def sample(self, logits: Logits, candidates: Candidates) -> Sampled:
        """Chooses and accepts the next token; `candidates` is scratch. Raises `GrammarDeadEnd`."""
        token = self._choose(logits, candidates)
        constraint = self._constraint
        if constraint is not None and not constraint.take(token):
            token = self._choose_within(constraint, logits, candidates)
            constraint.take(token)
        if self._chain is not None:
            self._chain.accept(token)
        return _with_logprobs(token, logits, self.params.logprobs)

    def _choose(self, logits: Logits, candidates: Candidates) -> int:
        if self._chain is None:
            return int(logits.argmax())
        candidates.fill(logits)
        self._chain.apply(candidates)
        return candidates.selected()[0]

    def _choose_within(self, constraint: Constraint, logits: Logits, candidates: Candidates) -> int:
        candidates.fill(logits)
        constraint.mask(candidates)
        if self._chain is None:
            best = int(candidates.data["logit"].argmax())
            token, logit = int(candidates.data["id"][best]), float(candidates.data["logit"][best])
        else:
            self._chain.apply(candidates)
            token, logit = candidates.selected()
        if not np.isfinite(logit):
            raise GrammarDeadEnd
        return token


def _chain(params: SamplingParams, vocab: Vocab) -> SamplerChain:
    chain = SamplerChain(vocab)
    if params.logit_bias:
        chain.add_logit_bias(params.logit_bias)
    if params.penalizes:
        chain.add(
            "penalties",
            vocab.n_tokens,
            params.repeat_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
    if params.dry_multiplier > 0:
        chain.add_dry(
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            params.dry_penalty_last_n,
            params.dry_breakers,
        )
    if params.temperature <= 0:
        return chain.add("greedy")
    if params.top_k > 0:
        chain.add("top_k", params.top_k)
    if params.typical_p < 1:
        chain.add("typical", params.typical_p, 1)
    if params.top_p < 1:
        chain.add("top_p", params.top_p, 1)
    if params.min_p > 0:
        chain.add("min_p", params.min_p, 1)
    return chain.add("temp", params.temperature).add("dist", params.seed)


def _with_logprobs(token: int, logits: Logits, count: int | None) -> Sampled:
    if count is None:
        return Sampled(token)
    peak = float(logits.max())
    log_total = peak + float(np.log(np.exp(logits - peak, dtype=np.float64).sum()))
    best: list[int] = []
    if count:
        best = np.argpartition(logits, -count)[-count:].tolist()
        best.sort(key=lambda t: -logits[t])
    return Sampled(
        token,
        float(logits[token]) - log_total,
        tuple(TokenLogprob(t, float(logits[t]) - log_total) for t in best),
    )
