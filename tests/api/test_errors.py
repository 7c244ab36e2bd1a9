"""Bad requests: each is refused in OpenAI's shape, names the fault, and leaves the server well."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Server

pytestmark = pytest.mark.e2e

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """A connection; afterwards the server still answers, with the engine it had."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        restarts = client.get("/astraea/v1/state").json()["restarts"]
        yield client
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/astraea/v1/state").json()["restarts"] == restarts


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, which has exactly the fields that OpenAI's clients read."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "required"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": ["hi"]}, "messages.0", "object"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role", "required"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role", "'developer'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
            "messages.0.content.0.type",
            "required",
        ),
        ({"messages": [{"role": "user", "content": "hi " * 3000}]}, "messages", "2048"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "many"}, "max_tokens", "integer"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"min_p": -0.1}, "min_p", "greater than or equal to 0"),
        ({"repeat_penalty": 0}, "repeat_penalty", "greater than 0"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"stop": 5}, "stop", "string"),
        ({"stop": "x" * 501}, "stop", "500"),
        ({"tools": [{"function": {"name": f"t{i}"}} for i in range(513)]}, "tools", "at most 512"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "t"}}] * 1025}]},
            "messages.0.tool_calls",
            "at most 1024",
        ),
        ({"seed": "lucky"}, "seed", "integer"),
        ({"stream": "maybe"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": "maybe"}}, "stream_options.include_usage", "boolean"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"49152": 1}}, "logit_bias", "49152 is no token id (0 to 49151)"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"dry_multiplier": 1, "dry_sequence_breakers": ["\ud800"]}, "dry_sequence_breakers", "character"),
        ({"prompt_cache_key": 5}, "prompt_cache_key", "string"),
    ],
)
def test_a_bad_chat_field_is_named(
    http: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    """400, with the field in `param` and the allowed values in the message."""
    # Plain ASCII JSON, because httpx refuses to encode half of a surrogate pair.
    body = json.dumps({"messages": HI, "max_tokens": 2} | change)
    error = error_of(http.post(CHAT, content=body, headers=JSON), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words.lower() in error["message"].lower()


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [""]}, "prompt", "empty"),
        ({"prompt": 5}, "prompt", "string"),
        ({"prompt": [1, 2.5]}, "prompt.1", "integer"),
        ({"prompt": [49152]}, "prompt", "49152 is no token id (0 to 49151)"),
        ({"prompt": [-1]}, "prompt", "-1 is no token id"),
        ({"prompt": ["one", "two"]}, "prompt", "one text for each request"),
        ({"prompt": [5] * 2048}, "prompt", "prompt is too long: 2048 tokens > 2048 maximum"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ],
)
def test_a_bad_completion_field_is_named(
    http: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    """The same for plain completions."""
    error = error_of(http.post(TEXT, json={"prompt": "hi", "max_tokens": 2} | change), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words.lower() in error["message"].lower()


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_long_prompt_has_the_code_that_agents_look_for(http: httpx.Client, path: str) -> None:
    """Agents shorten their history when they see this code."""
    body = {"messages": [{"role": "user", "content": "hi " * 3000}], "prompt": "hi " * 3000}
    error = error_of(http.post(path, json=body), 400)
    assert error["code"] == "context_length_exceeded"
    assert "context.size" in error["message"]


@pytest.mark.parametrize("content", [None, "", []])
def test_no_content_is_no_error(http: httpx.Client, content: object) -> None:
    """An empty message is a message."""
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": content}], "max_tokens": 2})
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b"{nope", JSON, "not valid JSON"),
        (b"\xff\xfe\x00", JSON, "body"),
        (b"", JSON, "JSON object"),
        (b"null", JSON, "JSON object"),
        (b"[1, 2]", JSON, "JSON object"),
        (b'"text"', JSON, "JSON object"),
        (json.dumps({"messages": HI}).encode(), {}, "Content-Type: application/json"),
        (
            json.dumps({"messages": HI}).encode(),
            {"Content-Type": "text/plain"},
            "Content-Type: application/json",
        ),
        (b'{"messages": ' + b"[" * 50_000, JSON, "body"),
    ],
)
def test_a_body_that_is_no_object(
    http: httpx.Client, content: bytes, headers: dict[str, str], words: str
) -> None:
    """What cannot be read is a 400 that says what a body must be."""
    assert words in error_of(http.post(CHAT, content=content, headers=headers), 400)["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(http: httpx.Client, number: str) -> None:
    """JSON's illegitimate numbers do not reach the sampler."""
    body = f'{{"messages": {json.dumps(HI)}, "temperature": {number}}}'
    assert error_of(http.post(CHAT, content=body, headers=JSON), 400)["param"] == "temperature"


@pytest.mark.parametrize("value", ["urgent", "10", "-10", "1.5", ""])
def test_a_bad_priority_is_named(http: httpx.Client, value: str) -> None:
    """The header is named as a client spells it."""
    headers = {"X-Astraea-Priority": value}
    error = error_of(http.post(CHAT, json={"messages": HI, "max_tokens": 1}, headers=headers), 400)
    assert error["param"] == "X-Astraea-Priority"
    assert "from -9 to 9" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/detokenize", {"tokens": "5"}, "tokens"),
        ("/detokenize", {"tokens": [49152]}, "tokens"),
    ],
)
def test_token_endpoints_name_the_field(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    """The server's own endpoints fail in the same shape."""
    assert error_of(http.post(path, json=body), 400)["param"] == param


def test_an_unknown_path(http: httpx.Client) -> None:
    """404 says what was asked for."""
    error = error_of(http.post("/v1/nothing-of-ours", json={}), 404)
    assert error["type"] == "not_found_error"
    assert "POST /v1/nothing-of-ours" in error["message"]


@pytest.mark.parametrize(("method", "path", "right"), [("GET", CHAT, "POST"), ("POST", "/v1/models", "GET")])
def test_a_wrong_method(http: httpx.Client, method: str, path: str, right: str) -> None:
    """405 says which method is right, in the header and in words."""
    answer = http.request(method, path)
    assert f"use {right}" in error_of(answer, 405)["message"]
    assert answer.headers["allow"] == right


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", ""]
)
def test_a_foreign_host_is_refused(http: httpx.Client, host: str) -> None:
    """A web page cannot reach the server under its own name."""
    error = error_of(http.get("/v1/models", headers={"Host": host}), 400)
    assert error["code"] == "foreign_host"
    assert repr(host) in error["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.0.0.2", "[::1]:8080"])
def test_every_name_of_this_computer_is_right(http: httpx.Client, host: str) -> None:
    """Loopback addresses of both families are answered, whatever the port."""
    assert http.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused(small: Server, declared: bool) -> None:
    """413 names the setting, whether the size is declared or only found out."""
    content = json.dumps({"messages": [{"role": "user", "content": "x" * (1 << 20)}]}).encode()

    def pieces() -> Iterator[bytes]:
        yield content

    with httpx.Client(base_url=small.url, timeout=60) as client:
        answer = client.post(CHAT, content=content if declared else pieces(), headers=JSON)
        error = error_of(answer, 413)
    assert error["code"] == "body_too_large"
    assert "server.max_body_mib allows (1 MiB)" in error["message"]
    assert small.healthy()


def test_a_full_queue_asks_to_come_back(small: Server) -> None:
    """429 with Retry-After while the only place is taken, and an answer once it is free."""
    busy = {"messages": HI, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    short = {"messages": HI, "max_tokens": 1}
    with httpx.Client(base_url=small.url, timeout=60) as client:
        with client.stream("POST", CHAT, json=busy) as running:
            alive = running.iter_lines()
            next(line for line in alive if line.startswith("data:"))
            answer = client.post(CHAT, json=short)
            error = error_of(answer, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert "server.max_queue is 1" in error["message"]
            assert int(answer.headers["retry-after"]) >= 1
        small.wait_until(lambda: client.post(CHAT, json=short).status_code == 200)


def test_more_choices_than_the_queue_can_ever_hold(small: Server) -> None:
    """Trying again would not help, so it is no 429."""
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 2}
    answer = httpx.post(f"{small.base_url}/chat/completions", json=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "n"
