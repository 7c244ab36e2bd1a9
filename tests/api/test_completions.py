"""`/v1/completions` of a real server, spoken to by the official client."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types import Completion

from tests.conftest import Server

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time there was a"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    """The official client, which must not hide a failure by trying again."""
    with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def complete(client: OpenAI, prompt: Any = PROMPT, **settings: Any) -> Completion:
    """One completion, greedy and short unless stated otherwise."""
    answer = client.completions.create(
        model="demo", prompt=prompt, **({"temperature": 0, "max_tokens": 10} | settings)
    )
    assert isinstance(answer, Completion)
    return answer


def stream(client: OpenAI, **settings: Any) -> list[Completion]:
    """All chunks of the same completion, streamed."""
    given = {"temperature": 0, "max_tokens": 10} | settings
    return list(client.completions.create(model="demo", prompt=PROMPT, stream=True, **given))


def tokens_of(server: Server, text: str) -> list[int]:
    """Token ids of a text."""
    ids: list[int] = httpx.post(f"{server.url}/tokenize", json={"content": text}).json()["tokens"]
    return ids


def test_a_text_is_continued(client: OpenAI) -> None:
    """The plain answer: text, reason and counts, nothing of the prompt, no chat template."""
    answer = complete(client)
    choice = answer.choices[0]
    assert choice.text.startswith(" ")
    assert PROMPT not in choice.text
    assert (choice.index, choice.finish_reason, answer.object) == (0, "length", "text_completion")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens < 10
    assert answer.usage.completion_tokens == 10


def test_sixteen_tokens_are_the_default(server: Server) -> None:
    """Without max_tokens the answer is as short as OpenAI's."""
    body = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{server.base_url}/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_token_ids_are_a_prompt(client: OpenAI, server: Server) -> None:
    """Ids give the same completion as the text they stand for."""
    ids = tokens_of(server, PROMPT)
    answer = complete(client, ids)
    assert answer.choices[0].text == complete(client).choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


def test_a_list_of_one_text_is_that_text(client: OpenAI) -> None:
    """Clients that always send lists are understood."""
    assert complete(client, [PROMPT]).choices[0].text == complete(client).choices[0].text


def test_several_prompts_are_refused(client: OpenAI) -> None:
    """A batch is refused with what to do instead."""
    with pytest.raises(BadRequestError, match="send one text for each request") as error:
        complete(client, ["one", "two"])
    assert error.value.param == "prompt"


def test_echo_repeats_the_prompt(client: OpenAI) -> None:
    """With echo the text begins with the prompt, whole or streamed."""
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == PROMPT + plain
    assert "".join(c.choices[0].text for c in stream(client, echo=True)) == PROMPT + plain


def test_a_stream_says_the_same(client: OpenAI) -> None:
    """Chunks add up to the whole text; the last one has the reason, then usage when asked for."""
    chunks = stream(client, stream_options={"include_usage": True})
    choices = [c.choices[0] for c in chunks[:-1]]
    assert "".join(c.text for c in choices) == complete(client).choices[0].text
    assert [c.finish_reason for c in choices if c.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10


def test_several_choices(client: OpenAI) -> None:
    """n gives as many texts, told apart by index, and all their tokens are counted."""
    answer = complete(client, n=3, seed=7, temperature=1.5)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.text for c in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(
        10 if c.finish_reason == "length" else 0 for c in answer.choices
    )


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_line_up_with_the_text(client: OpenAI, echo: bool) -> None:
    """Each token is found in the text at its offset, and is the likeliest of its alternatives."""
    choice = complete(client, logprobs=3, echo=echo).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 10
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert max(top, key=lambda t: top[t]) == token
        assert top[token] == value
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_streamed_offsets_go_on(client: OpenAI) -> None:
    """Offsets count from the beginning of the text, not of the chunk."""
    chunks = stream(client, logprobs=0)
    text = "".join(c.choices[0].text for c in chunks)
    found = [
        (token, offset)
        for c in chunks
        if (logprobs := c.choices[0].logprobs) is not None
        for token, offset in zip(logprobs.tokens or [], logprobs.text_offset or [], strict=True)
    ]
    assert len(found) == 10
    assert all(text[offset:].startswith(token) for token, offset in found)


def test_a_stop_string_ends_the_text(client: OpenAI) -> None:
    """The text ends before the stop string."""
    plain = complete(client).choices[0].text
    stop = plain.split()[-1]
    choice = complete(client, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (plain[: plain.index(stop)], "stop")
