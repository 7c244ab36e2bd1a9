"""`/v1/chat/completions` of a real server, spoken to by the official client."""

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from astraea_local.frame import StateFrame
from tests.conftest import Server

pytestmark = pytest.mark.e2e

SEA = [{"role": "user", "content": "Write one sentence about the sea."}]
ENDLESS: dict[str, Any] = {"messages": SEA, "ignore_eos": True, "stream": True}
LONG: dict[str, Any] = {"messages": SEA, "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    """The official client, which must not hide a failure by trying again."""
    with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def ask(client: OpenAI, messages: Any = SEA, **settings: Any) -> ChatCompletion:
    """One answer, greedy and short unless stated otherwise."""
    settings = {"temperature": 0, "max_tokens": 12} | settings
    extra = {k: settings.pop(k) for k in ("grammar", "ignore_eos") if k in settings}
    answer = client.chat.completions.create(model="demo", messages=messages, extra_body=extra, **settings)
    assert isinstance(answer, ChatCompletion)
    return answer


def stream(client: OpenAI, messages: Any = SEA, **settings: Any) -> list[ChatCompletionChunk]:
    """All chunks of one streamed answer, with the same defaults."""
    settings = {"temperature": 0, "max_tokens": 12} | settings
    extra = {k: settings.pop(k) for k in ("grammar", "ignore_eos") if k in settings}
    return list(
        client.chat.completions.create(
            model="demo", messages=messages, stream=True, extra_body=extra, **settings
        )
    )


def pieces(chunks: list[ChatCompletionChunk], index: int = 0) -> list[str]:
    """The non-empty contents of one choice."""
    return [
        choice.delta.content
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index and choice.delta.content
    ]


def reasons(chunks: list[ChatCompletionChunk]) -> list[str]:
    """The finish reasons that were sent."""
    return [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]


def frame(server: Server) -> StateFrame:
    """The server's state, typed."""
    return StateFrame.model_validate(server.state())


def runs(server: Server, job: str) -> bool:
    """Whether a segment of the job holds a slot."""
    return any(slot.job == job and slot.segment is not None for slot in frame(server).slots)


def test_a_stream_says_the_same_as_a_whole_answer(client: OpenAI) -> None:
    """Greedy text, finish reason and model name are the same in both forms."""
    whole, chunks = ask(client), stream(client)
    assert len(pieces(chunks)) > 1
    assert "".join(pieces(chunks)) == whole.choices[0].message.content
    assert reasons(chunks) == [whole.choices[0].finish_reason] == ["length"]
    assert {c.model for c in chunks} == {whole.model}
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"


def test_usage_closes_a_stream_on_request(client: OpenAI) -> None:
    """With include_usage the last chunk has the counts and no choice; without it none has."""
    chunks = stream(client, stream_options={"include_usage": True})
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    usage, whole = chunks[-1].usage, ask(client).usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert whole is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.prompt_tokens, 12)
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert all(c.usage is None for c in stream(client))


def test_several_choices_are_reproducible(client: OpenAI) -> None:
    """n=2 with a seed gives two answers, the same two again, and their tokens are all counted."""
    first, again = (ask(client, n=2, seed=5, temperature=1) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert [c.index for c in first.choices] == [0, 1]
    assert texts[0] != texts[1]
    assert [c.message.content for c in again.choices] == texts
    assert first.usage is not None
    assert first.usage.completion_tokens == 24


def test_streamed_choices_are_told_apart(client: OpenAI) -> None:
    """A stream of two choices carries both texts under their index and ends each once."""
    chunks = stream(client, n=2, temperature=0)
    text = ask(client).choices[0].message.content
    assert "".join(pieces(chunks, 0)) == "".join(pieces(chunks, 1)) == text
    assert reasons(chunks) == ["length", "length"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_output_is_bounded(client: OpenAI, field: str) -> None:
    """Both names of the limit end the answer with `length` after exactly so many tokens."""
    answer = ask(client, **{"max_tokens": 20, field: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_stop_string_across_tokens_never_leaks(client: OpenAI) -> None:
    """A stop that begins in one token and ends in the next cuts the text right before it."""
    greedy = ask(client, max_tokens=20, logprobs=True).choices[0]
    text = greedy.message.content
    assert text is not None
    assert greedy.logprobs is not None
    tokens = [t.token for t in greedy.logprobs.content or []]
    borders = [len("".join(tokens[:i])) for i in range(1, len(tokens))]
    at = next(b - 1 for b in borders if b > 8 and text.find(text[b - 1 : b + 2]) == b - 1)
    stop = text[at : at + 3]
    answer = ask(client, max_tokens=20, stop=["never said", stop]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (text[:at], "stop")
    chunks = stream(client, max_tokens=20, stop=stop)
    assert "".join(pieces(chunks)) == text[:at]
    assert reasons(chunks) == ["stop"]


def test_a_stop_string_that_stays_unfinished_is_delivered(client: OpenAI) -> None:
    """What only looked like the beginning of a stop string is part of the answer."""
    text = ask(client).choices[0].message.content
    assert text is not None
    assert "".join(pieces(stream(client, stop=text[-4:] + "never said"))) == text


def test_a_seed_repeats_an_answer(client: OpenAI) -> None:
    """At temperature 1 a seed decides the text, and different seeds decide differently."""
    texts = {seed: ask(client, seed=seed, temperature=1).choices[0].message.content for seed in (1, 2, 3)}
    assert ask(client, seed=2, temperature=1).choices[0].message.content == texts[2]
    assert len(set(texts.values())) > 1


def test_without_a_seed_answers_differ(client: OpenAI) -> None:
    """Nobody gets the same dice twice."""
    answers = ask(client, n=6, temperature=2, max_tokens=8).choices
    assert len({c.message.content for c in answers}) > 1


def test_logprobs_are_probabilities(client: OpenAI) -> None:
    """Alternatives are sorted, sum to at most 1, and hold the greedy choice; bytes spell the text."""
    answer = ask(client, logprobs=True, top_logprobs=5)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    for token in logprobs.content:
        top = [t.logprob for t in token.top_logprobs]
        assert len(top) == 5
        assert top == sorted(top, reverse=True)
        assert sum(map(math.exp, top)) <= 1 + 1e-6
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
    spelled = b"".join(bytes(t.bytes or []) for t in logprobs.content).decode()
    assert spelled == answer.choices[0].message.content


def test_streamed_logprobs_are_the_same(client: OpenAI) -> None:
    """A stream carries each token's logprob once, in order."""
    whole = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs
    chunks = stream(client, logprobs=True, top_logprobs=2)
    found = [
        t for c in chunks for choice in c.choices if choice.logprobs for t in choice.logprobs.content or []
    ]
    assert whole is not None
    assert whole.content is not None
    assert [t.token for t in found] == [t.token for t in whole.content]
    assert [t.logprob for t in found] == pytest.approx([t.logprob for t in whole.content], abs=0.05)


def test_characters_are_never_cut(client: OpenAI) -> None:
    """Characters of several tokens arrive whole."""
    parts = pieces(stream(client, grammar='root ::= "日本語🙂é"', max_tokens=32))
    assert len(parts) > 1
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) == "日本語🙂é"


def test_a_conversation_goes_on_where_it_was(client: OpenAI) -> None:
    """The second turn is recognized as the same job and most of its context is not computed again."""
    messages: list[Any] = [
        {"role": "system", "content": "You keep the log of a small lighthouse on a northern island."},
        {"role": "user", "content": "Describe how the weather changed between noon and midnight."},
    ]

    def turn() -> tuple[str, ChatCompletion]:
        raw = client.chat.completions.with_raw_response.create(
            model="demo", messages=messages, temperature=0, max_tokens=24
        )
        return raw.headers["x-astraea-job"], raw.parse()

    job, first = turn()
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And the birds?"},
    ]
    next_job, second = turn()
    assert next_job == job
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached > 0.8 * first.usage.total_tokens
    other = client.chat.completions.with_raw_response.create(
        model="demo", messages=[{"role": "user", "content": "Something else."}], max_tokens=1
    )
    assert other.headers["x-astraea-job"] != job


def test_a_job_may_have_any_name(server: Server) -> None:
    """A name outside of Latin-1 does not break the answer's headers."""
    body = {"messages": SEA, "max_tokens": 1, "prompt_cache_key": "灯台"}
    for form in ({}, {"stream": True}):
        answer = httpx.post(f"{server.base_url}/chat/completions", json=body | form, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["x-astraea-job"] == "%E7%81%AF%E5%8F%B0"
    server.wait_until(lambda: "灯台" in {job.job for job in frame(server).jobs}, 10)


def test_the_developer_speaks_as_the_system(client: OpenAI) -> None:
    """A developer message is what the model knows as a system message."""
    answers = [
        ask(client, [{"role": role, "content": "You are a pirate."}, *SEA])
        for role in ("developer", "system")
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert [a.usage.prompt_tokens for a in answers if a.usage] == [answers[0].usage.prompt_tokens] * 2  # type: ignore[union-attr]


def test_text_parts_are_joined(client: OpenAI) -> None:
    """A list of text parts is the same message as their text."""
    parts = [{"type": "text", "text": "Write one sentence"}, {"type": "text", "text": " about the sea."}]
    split, whole = ask(client, [{"role": "user", "content": parts}]), ask(client)
    assert split.choices[0].message.content == whole.choices[0].message.content
    assert split.usage is not None
    assert whole.usage is not None
    assert split.usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_tool_call_and_its_result_reach_the_model(client: OpenAI) -> None:
    """An assistant message without content keeps its calls, and the tool's answer is read."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    asked = {"role": "user", "content": "Weather?"}

    def tokens(*messages: Any) -> int:
        usage = ask(client, [asked, *messages], max_tokens=1).usage
        assert usage is not None
        return usage.prompt_tokens

    silent = {"role": "assistant", "content": None}
    result = {"role": "tool", "tool_call_id": "1", "content": "sunny all day"}
    assert tokens(silent | {"tool_calls": [call]}) > tokens(silent) + 5
    assert tokens(silent | {"tool_calls": [call]}, result) > tokens(silent | {"tool_calls": [call]})


def test_images_are_refused_clearly(client: OpenAI) -> None:
    """The error names the message and says that only text is read."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(
        BadRequestError, match=r"messages\.0\.content: .*'image_url'.*reads text only"
    ) as error:
        ask(client, [{"role": "user", "content": [image]}])
    assert error.value.param == "messages.0.content"


class Weather(BaseModel):
    city: Literal["Oslo", "Rome"]
    degrees: int


def test_structured_output_fits_its_schema(client: OpenAI) -> None:
    """The client's own way to ask for a type of Python gives one."""
    asked: Any = [{"role": "user", "content": "The weather in Rome?"}]
    settings: dict[str, Any] = {"model": "demo", "messages": asked, "temperature": 0, "max_tokens": 64}
    whole = client.chat.completions.parse(response_format=Weather, **settings).choices[0].message.parsed
    assert isinstance(whole, Weather)
    with client.chat.completions.stream(response_format=Weather, **settings) as chunks:
        assert chunks.get_final_completion().choices[0].message.parsed == whole


def test_null_means_not_set(client: OpenAI) -> None:
    """Clients write null for what they leave to the server."""
    nulls: Any = dict.fromkeys(("stop", "n", "logprobs", "top_logprobs", "presence_penalty", "stream"))
    answer = ask(client, response_format=None, **nulls)
    assert answer.choices[0].message.content == ask(client).choices[0].message.content


def test_a_queued_stream_is_kept_alive(narrow: Server) -> None:
    """While a stream waits for a slot, comments say so; then it runs as if nothing had been."""
    url = f"{narrow.base_url}/chat/completions"
    with httpx.Client(timeout=60) as http, http.stream("POST", url, json=ENDLESS) as running:
        alive = running.iter_lines()
        next(line for line in alive if line.startswith("data:"))
        short = {"messages": SEA, "max_tokens": 2, "ignore_eos": True, "stream": True}
        with http.stream("POST", url, json=short) as waiting:
            lines = waiting.iter_lines()
            before = [next(line for line in lines if line) for _ in range(3)]
            assert before == [": queued"] * 3
            running.close()
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: Server, streamed: bool) -> None:
    """Streaming or not, a segment ends soon after its client went away."""
    job = f"leaves-{streamed}"
    cancelled = frame(server).totals.segments_cancelled
    url, headers = f"{server.base_url}/chat/completions", {"X-Astraea-Job": job}
    with httpx.Client(timeout=httpx.Timeout(60, read=60 if streamed else 1)) as http:
        if streamed:
            with http.stream("POST", url, json=LONG | {"stream": True}, headers=headers) as answer:
                alive = answer.iter_lines()
                next(line for line in alive if line.startswith("data:"))
                server.wait_until(lambda: runs(server, job))
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(url, json=LONG, headers=headers)
    server.wait_until(lambda: not runs(server, job), 10)
    server.wait_until(lambda: frame(server).totals.segments_cancelled == cancelled + 1, 10)


def test_the_context_bounds_an_answer(small: Server) -> None:
    """Without a limit of its own an answer ends with `length` where the job's context ends."""
    body = {"messages": [{"role": "user", "content": "word " * 1900}], "ignore_eos": True}
    answer = httpx.post(f"{small.base_url}/chat/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 2048
