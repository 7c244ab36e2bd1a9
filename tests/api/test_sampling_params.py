"""Every sampling parameter does what its name says, on a real server."""

from typing import Any

import httpx
import pytest

from tests.conftest import Server

pytestmark = pytest.mark.e2e

PLAIN = "The capital of France is"
REPETITIVE = "The cat sat on the mat. The cat sat on the mat. The cat"


@pytest.fixture(scope="module")
def http(server: Server) -> Any:
    """A connection to the server."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def complete(http: httpx.Client, prompt: str = PLAIN, **settings: Any) -> dict[str, Any]:
    """The first choice; greedy and short unless stated otherwise."""
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 12} | settings
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def text(http: httpx.Client, prompt: str = PLAIN, **settings: Any) -> str:
    """Its text."""
    return str(complete(http, prompt, **settings)["text"])


def token_of(http: httpx.Client, word: str) -> int:
    """The id of a text that is one token."""
    (token,) = http.post("/tokenize", json={"content": word}).json()["tokens"]
    return int(token)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"min_p": 1.0},
        {"top_p": 0.0},
        {"temperature": 0.001},
        {"temperature": 0, "seed": 99},
        {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0},
    ],
)
def test_these_leave_only_the_likeliest_token(http: httpx.Client, settings: dict[str, Any]) -> None:
    """Each of these is another way to say greedy."""
    assert text(http, **({"temperature": 1.5} | settings)) == text(http)


def test_greedy_takes_the_likeliest_token(http: httpx.Client) -> None:
    """At temperature 0 every token heads its list of alternatives."""
    logprobs = complete(http, logprobs=2)["logprobs"]
    assert logprobs["tokens"] == [max(top, key=top.get) for top in logprobs["top_logprobs"]]


def test_temperature_makes_rare_tokens_likelier(http: httpx.Client) -> None:
    """Hot text without any cut is improbable text, and nothing like the greedy one."""
    cold = complete(http, logprobs=0)["logprobs"]["token_logprobs"]
    hot = complete(http, temperature=5, top_k=0, top_p=1, min_p=0, seed=3, logprobs=0)
    assert sum(hot["logprobs"]["token_logprobs"]) < 3 * sum(cold)


def test_top_k_keeps_that_many(http: httpx.Client) -> None:
    """With top_k=3 each token is one of the three likeliest, however hot it is."""
    hot: dict[str, Any] = {"temperature": 10, "top_p": 1, "min_p": 0, "seed": 4, "logprobs": 3}
    logprobs = complete(http, top_k=3, **hot)["logprobs"]
    pairs = list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))
    assert all(token in top for token, top in pairs)
    logprobs = complete(http, top_k=0, **hot)["logprobs"]
    pairs = list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))
    assert not all(token in top for token, top in pairs)


def test_a_bias_forces_a_token(http: httpx.Client) -> None:
    """+100 on a token makes it the whole answer, greedy or not."""
    token = token_of(http, " banana")
    for temperature in (0, 1):
        answer = text(http, logit_bias={str(token): 100}, temperature=temperature, max_tokens=4)
        assert answer == " banana" * 4


def test_a_bias_bans_a_token(http: httpx.Client) -> None:
    """-100 on the greedy token makes the answer begin differently."""
    first = complete(http, logprobs=0)["logprobs"]["tokens"][0]
    banned = {str(token_of(http, first)): -100}
    tokens = complete(http, logit_bias=banned, logprobs=0)["logprobs"]["tokens"]
    assert first not in tokens


@pytest.mark.parametrize(
    "penalty",
    [
        {"repeat_penalty": 1.5},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"dry_multiplier": 2.0},
    ],
)
def test_penalties_end_a_loop(http: httpx.Client, penalty: dict[str, float]) -> None:
    """The prompt repeats itself, greedy text goes on with it, and a penalty makes it say something new."""
    loop = " sat on the mat."
    assert text(http, REPETITIVE).startswith(loop)
    answer = text(http, REPETITIVE, **penalty)
    assert answer
    assert not answer.startswith(loop)


def test_a_penalty_looks_back_only_so_far(http: httpx.Client) -> None:
    """A window of no tokens is no penalty."""
    assert text(http, REPETITIVE, repeat_penalty=1.5, repeat_last_n=0) == text(http, REPETITIVE)


def test_both_names_of_the_repeat_penalty_agree(http: httpx.Client) -> None:
    """`repetition_penalty` is `repeat_penalty` under another name."""
    assert text(http, REPETITIVE, repeat_penalty=1.3) == text(http, REPETITIVE, repetition_penalty=1.3)


def test_dry_spares_sequences_across_a_breaker(http: httpx.Client) -> None:
    """What a breaker divides is no repetition: with one in every word, DRY penalizes nothing."""
    breakers = [" sat", " on", " the", " mat", ".", " cat", "The", " The"]
    assert text(http, REPETITIVE, dry_multiplier=2.0, dry_sequence_breakers=breakers) == text(
        http, REPETITIVE
    )


def test_typical_p_changes_what_is_sampled(http: httpx.Client) -> None:
    """A small typical_p keeps few tokens, so the same seed gives another text."""
    hot: dict[str, Any] = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 11}
    assert text(http, typical_p=0.2, **hot) != text(http, **hot)


def test_ignore_eos_goes_on_to_the_limit(http: httpx.Client) -> None:
    """A text that would end by itself runs to max_tokens instead."""
    eos: dict[str, Any] = {"logit_bias": {"2": 100}}
    ended = complete(http, **eos)
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")
    assert complete(http, ignore_eos=True, **eos)["finish_reason"] == "length"
