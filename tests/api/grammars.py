"""Answers to grammars: whether a text is one, and some taken at random."""

import numpy as np

from astraea_local.engine.binding import Guides, Vocab
from astraea_local.engine.binding.sampler import Candidates


def follows(guides: Guides, vocab: Vocab, grammar: str, text: str) -> bool:
    """Whether the text is a whole answer."""
    guide = guides.open(grammar)
    tokens = vocab.tokenize(text, add_special=False, parse_special=True)
    return all(guide.take(int(t)) for t in tokens) and (guide.complete or guide.take(vocab.eos))


def walk(guides: Guides, vocab: Vocab, grammar: str, rng: np.random.Generator) -> str:
    """An answer of tokens that are allowed, each as likely as the others."""
    guide, candidates = guides.open(grammar), Candidates(vocab.n_tokens)
    even = np.zeros(vocab.n_tokens, dtype=np.float32)
    text = b""
    while not guide.complete:
        candidates.fill(even)
        guide.mask(candidates)
        token = int(rng.choice(np.flatnonzero(np.isfinite(candidates.data["logit"]))))
        if vocab.is_eog(token):
            break
        assert guide.take(token)
        text += vocab.piece(token, special=True)
    return text.decode()
