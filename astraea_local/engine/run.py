"""A segment as the engine runs it: its tokens, its sampler, and the text that came out."""

import math
from dataclasses import dataclass

from astraea_local.engine.binding import Candidates, Guides, Logits, Tokens, Vocab
from astraea_local.engine.messages import ChosenToken, Delta, Finished, Submit
from astraea_local.engine.sampling import GrammarDeadEnd, Sampled, Sampler
from astraea_local.engine.slots import Sequence, TokenBuffer
from astraea_local.engine.text import PieceTable, TextStream


@dataclass(frozen=True, slots=True)
class Back:
    """How a segment follows the one before it."""

    number: int
    """Segments of the job that ended before."""
    wait_s: float | None
    """Since the end of the last one; None for the first, or when they overlap."""
    new_tokens: int
    """Prompt tokens beyond the last one's context."""


class Run:
    """One segment from its submission to its end; keeps everything through preemptions."""

    def __init__(self, request: Submit, vocab: Vocab, guides: Guides, pieces: PieceTable, now: float) -> None:
        """Raises `BindingError` when the grammar is not valid."""
        self.request = request
        self.context = TokenBuffer(request.prompt)
        self.sequence: Sequence | None = None
        self.cached = 0
        self.output = 0
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.told_at = -math.inf
        self.submitted_at = now
        self.back = Back(0, None, len(request.prompt))
        self._vocab = vocab
        self._pieces = pieces
        self._sampler = Sampler(request.sampling, vocab, guides, request.prompt)
        self._text = TextStream(request.stops)
        self._shown = frozenset(request.shown)
        self._pending_text: list[str] = []
        self._pending_logprobs: list[ChosenToken] = []

    def close(self) -> None:
        """Frees the sampler."""
        self._sampler.close()

    @property
    def pending(self) -> Tokens:
        """Context tokens that are not in KV yet; the last one's logits give the next token."""
        return self.context.view(0 if self.sequence is None else len(self.sequence.tokens))

    @property
    def decoding(self) -> bool:
        """Whether a single token is missing, so that the next step yields one of output."""
        assert self.sequence is not None
        return len(self.context) - len(self.sequence.tokens) == 1

    def take(self, logits: Logits, candidates: Candidates, limit: int, now: float) -> str | None:
        """Samples one token; returns the finish reason when it was the last. `limit` bounds the context."""
        try:
            sampled = self._sampler.sample(logits, candidates)
        except GrammarDeadEnd:
            return "stop"
        if self.first_token_at is None:
            self.first_token_at = now
        if self._vocab.is_eog(sampled.token) and not self.request.ignore_eos:
            return "stop"
        self.output += 1
        self.context.append(sampled.token)
        self._keep(sampled)
        if self._text.stopped_by is not None or self._sampler.complete:
            return "stop"
        if self.output >= self.request.max_output or len(self.context) >= limit:
            return "length"
        return None

    def delta(self) -> Delta | None:
        """What a streaming client has not seen yet, if anything."""
        if not self.request.stream or not (self._pending_text or self._pending_logprobs):
            return None
        return Delta(self.request.segment, *self._drain())

    def finished(self, reason: str, now: float) -> Finished:
        """The closing message, with all text still held back."""
        if rest := self._text.finish():
            self._pending_text.append(rest)
        text, logprobs = self._drain()
        started = now if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return Finished(
            segment=self.request.segment,
            reason=reason,
            text=text,
            prompt_tokens=len(self.request.prompt),
            output_tokens=self.output,
            cached_tokens=self.cached,
            queued_s=started - self.submitted_at,
            prefill_s=first - started,
            decode_s=now - first,
            logprobs=logprobs,
            output=tuple(self.context.view(len(self.request.prompt)).tolist()),
            stop=self._text.stopped_by or "",
        )

    def _keep(self, sampled: Sampled) -> None:
        token = sampled.token
        piece = self._vocab.piece(token, special=True) if token in self._shown else self._pieces[token]
        if text := self._text.push(piece):
            self._pending_text.append(text)
        if sampled.logprob is not None:
            self._pending_logprobs.append(ChosenToken(sampled.token, sampled.logprob, sampled.top))

    def _drain(self) -> tuple[str, tuple[ChosenToken, ...]]:
        text, logprobs = "".join(self._pending_text), tuple(self._pending_logprobs)
        self._pending_text.clear()
        self._pending_logprobs.clear()
        return text, logprobs
