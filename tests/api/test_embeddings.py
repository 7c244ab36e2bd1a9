"""`/v1/embeddings` of a real server, spoken to by the official client."""

import base64
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from openai import BadRequestError, InternalServerError, OpenAI, RateLimitError
from openai.types import CreateEmbeddingResponse

from astraea_local.bench import random_model
from tests.api.conftest import profile
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

LIMIT = 1024
SIZE = 64
TEXTS = ["the sea", "the sea", "a mountain", "1", "grüße × 4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; a token is a byte, and the last one's output is the embedding."""
    return random_model.write(tmp_path_factory.mktemp("model") / "embedder.gguf", pooling=3)


@pytest.fixture(scope="module")
def embedder(start_server: StartServer, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    more = f"[context]\nsize = {LIMIT}\nslots = 2\nbatch = 128\nubatch = 128\n[kv]\nlayout = 'unified'\n"
    return start_server("--profile", profile(tmp_path_factory.mktemp("embedder"), model, more))


@pytest.fixture(scope="module")
def client(embedder: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=embedder.base_url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def embed(client: OpenAI, given: Any, **settings: Any) -> CreateEmbeddingResponse:
    return client.embeddings.create(model="any", input=given, **settings)


def vectors(answer: CreateEmbeddingResponse) -> npt.NDArray[np.float32]:
    assert [row.index for row in answer.data] == list(range(len(answer.data)))
    return np.array([row.embedding for row in answer.data], np.float32)


def test_equal_texts_have_equal_vectors_of_length_one(client: OpenAI) -> None:
    """In the order of the inputs, alone or among others."""
    answer = embed(client, TEXTS)
    found = vectors(answer)
    assert found.shape == (len(TEXTS), SIZE)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2], atol=0.01)
    for text, vector in zip(TEXTS, found, strict=True):
        assert np.array_equal(vectors(embed(client, text))[0], vector)
    assert answer.model == "embedder"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len("".join(TEXTS).encode())


def test_base64_and_numbers_say_the_same(embedder: Server) -> None:
    asked: dict[str, Any] = {"model": "any", "input": TEXTS}
    told = {}
    for form in ("float", "base64"):
        answer = httpx.post(f"{embedder.base_url}/embeddings", json=asked | {"encoding_format": form})
        told[form] = [row["embedding"] for row in answer.json()["data"]]
    decoded = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in told["base64"]]
    assert decoded == told["float"]
    plain = httpx.post(f"{embedder.base_url}/embeddings", json=asked).json()
    assert [row["embedding"] for row in plain["data"]] == told["float"]


def test_token_ids_are_as_good_as_text(client: OpenAI, embedder: Server) -> None:
    """One list is one input, a list of lists are several."""
    ids = [httpx.post(f"{embedder.url}/tokenize", json={"content": text}).json()["tokens"] for text in TEXTS]
    expected = vectors(embed(client, TEXTS))
    assert np.array_equal(vectors(embed(client, ids)), expected)
    assert np.array_equal(vectors(embed(client, ids[2])), expected[2:3])


def test_what_cannot_be_embedded_is_named(client: OpenAI) -> None:
    """The field, and which of the inputs it is."""
    longest = "x" * LIMIT
    assert embed(client, longest).usage.prompt_tokens == LIMIT
    for given, param, words in (
        (["a", longest + "x"], "input.1", rf"input\.1: {LIMIT + 1} tokens > {LIMIT} maximum"),
        (longest + "x", "input", rf"input: {LIMIT + 1} tokens"),
        (["a", ""], "input.1", r"input\.1: must not be empty"),
        ([[3], [3, 99999]], "input.1", r"input\.1: 99999 is no token id"),
        ([], "input", "must not be empty"),
        (["a"] * 2049, "input", r"2,049 inputs are more than"),
    ):
        with pytest.raises(BadRequestError, match=words) as caught:
            embed(client, given)
        assert caught.value.param == param


def test_no_other_size_is_offered(client: OpenAI) -> None:
    assert len(embed(client, "a", dimensions=SIZE).data[0].embedding) == SIZE
    with pytest.raises(BadRequestError, match=rf"this model's embeddings have {SIZE}") as caught:
        embed(client, "a", dimensions=SIZE // 2)
    assert caught.value.param == "dimensions"


def test_a_stream_goes_on_while_much_is_embedded(client: OpenAI) -> None:
    """Text keeps coming between the inputs, and a short request is not held up by a long one."""
    many = ["y" * (LIMIT - 1 - i) for i in range(100)]
    done: list[CreateEmbeddingResponse] = []
    stream = client.completions.create(
        model="any", prompt="Once", max_tokens=600, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    asking = threading.Thread(target=lambda: done.append(embed(client, many)))
    asking.start()
    before = 0
    embed(client, "short")
    assert not done
    for _chunk in chunks:
        before += not done
    asking.join()
    assert before > 10
    found = vectors(done[0])
    assert found.shape == (100, SIZE)
    assert np.array_equal(found[99], vectors(embed(client, many[99]))[0])


def test_who_leaves_is_not_worked_for(client: OpenAI, embedder: Server) -> None:
    """The rest of a request whose client is gone does not keep the engine busy."""
    body = {"input": ["z" * LIMIT] * 2048}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{embedder.base_url}/embeddings", json=body, timeout=httpx.Timeout(30, read=1))

    def counted() -> bool:
        lines = httpx.get(f"{embedder.url}/metrics").text.splitlines()
        return 'astraea_requests_total{endpoint="embeddings",outcome="cancelled"} 1.0' in lines

    def busy_s() -> float:
        return psutil.Process(embedder.engine_pid()).cpu_times().user

    began = busy_s()
    embedder.wait_until(counted)
    assert len(embed(client, "next").data) == 1
    stopped = busy_s()
    time.sleep(1.0)
    assert busy_s() - stopped < 0.5
    assert stopped - began < 3.0


def test_while_the_model_is_unloaded_nothing_is_embedded(client: OpenAI, embedder: Server) -> None:
    """It is said at once, also to whoever waits already; after `resume` the answers are as before."""
    expected = vectors(embed(client, "the sea"))
    refused: list[str] = []

    def ask() -> None:
        with pytest.raises(InternalServerError) as caught:
            embed(client, ["w" * LIMIT] * 2048)
        refused.append(caught.value.message)

    asking = threading.Thread(target=ask)
    asking.start()
    # It is at work by then, and has many seconds to go.
    time.sleep(1.0)
    assert not refused
    httpx.post(f"{embedder.url}/astraea/v1/pause", timeout=30).raise_for_status()
    asking.join(30)
    with pytest.raises(InternalServerError, match="resume it first"):
        embed(client, "the sea")
    httpx.post(f"{embedder.url}/astraea/v1/resume", timeout=30).raise_for_status()
    assert len(refused) == 1
    assert "resume it first" in refused[0]
    assert np.array_equal(vectors(embed(client, "the sea")), expected)
    httpx.post(f"{embedder.url}/astraea/v1/context", json={"size": 512}, timeout=30).raise_for_status()
    assert np.array_equal(vectors(embed(client, "the sea")), expected)
    assert embed(client, "x" * LIMIT).usage.prompt_tokens == LIMIT


def test_the_engines_death_is_said_and_survived(client: OpenAI, embedder: Server) -> None:
    """Nothing of it was delivered in part, so the client may simply ask again."""
    expected = vectors(embed(client, "the sea"))
    ended: list[InternalServerError] = []

    def ask() -> None:
        with pytest.raises(InternalServerError) as caught:
            embed(client, ["u" * LIMIT] * 2048)
        ended.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1.0)
    assert not ended
    os.kill(embedder.engine_pid(), signal.SIGKILL)
    asking.join(30)
    assert (ended[0].status_code, ended[0].code) == (503, "engine_unavailable")
    assert "the engine died" in ended[0].message
    embedder.wait_until(embedder.healthy)
    assert np.array_equal(vectors(embed(client, "the sea")), expected)


def test_it_counts_in_the_queue(
    start_server: StartServer, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And its time is limited like that of any request; a key is needed."""
    more = "[context]\nsize = 2048\nslots = 1\n[server]\nmax_queue = 1\nrequest_timeout_s = 4.0\n"
    folder = tmp_path_factory.mktemp("queue")
    server = start_server("--profile", profile(folder, model, more), "--api-key", "secret")
    assert httpx.post(f"{server.base_url}/embeddings", json={"input": "a"}).status_code == 401
    with OpenAI(base_url=server.base_url, api_key="secret", max_retries=0, timeout=60) as client:
        ended: list[InternalServerError] = []

        def ask() -> None:
            with pytest.raises(InternalServerError) as caught:
                embed(client, ["v" * 2048] * 2048)
            ended.append(caught.value)

        asking = threading.Thread(target=ask)
        asking.start()

        def full() -> bool:
            # Asks for nothing, so that it never takes the one place itself.
            url, key = f"{server.url}/astraea/v1/context", {"Authorization": "Bearer secret"}
            return httpx.post(url, json={}, headers=key).status_code == 429

        server.wait_until(full, 10.0)
        with pytest.raises(RateLimitError, match="queued or running"):
            embed(client, "a")
        asking.join(30)
        assert (ended[0].status_code, ended[0].code) == (504, "request_timeout")
        assert len(embed(client, "a").data) == 1


@pytest.mark.parametrize("given", ["x", ["x", "y"], [1, 2]])
def test_other_models_refuse(fast: Server, given: Any) -> None:
    words = "embeddings are not served by this model"
    with (
        OpenAI(base_url=fast.base_url, api_key="unused", max_retries=0) as client,
        pytest.raises(BadRequestError, match=words) as caught,
    ):
        embed(client, given)
    assert caught.value.code == "embeddings_not_served"
    assert "Qwen3-Embedding" in caught.value.message
