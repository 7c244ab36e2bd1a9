"""Which job a request belongs to, from what clients send anyway."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import Headers

from astraea_local.api.errors import ApiError
from astraea_local.api.identity import Identity, JobBook
from astraea_local.api.schemas import ChatRequest, CompletionRequest
from astraea_local.engine.binding import Tokens

_IDLE_S = 600.0
# What the chat template appends to make the model answer.
_GENERATION = (1, 77, 10)


def _tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int32)


def _chat_prompt(*messages: int) -> Tokens:
    """Ten tokens for each message, then the generation prompt."""
    body = [100 * message + i for message in messages for i in range(10)]
    return _tokens(*body, *_GENERATION)


@dataclass
class _Front:
    """A job book with a clock in the test's hand."""

    now: float = 0.0

    def __post_init__(self) -> None:
        self.book = JobBook(generation_prompt_tokens=len(_GENERATION), idle_s=_IDLE_S, clock=lambda: self.now)

    def ask(self, prompt: Tokens, headers: dict[str, str] | None = None, **body: Any) -> Identity:
        request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **body})
        return self.book.identify(Headers(headers or {}), request, prompt)

    def complete(self, prompt: Tokens) -> Identity:
        return self.book.identify(Headers({}), CompletionRequest(prompt="hi"), prompt)

    def call(self, prompt: Tokens, *output: int, headers: dict[str, str] | None = None) -> str:
        """A whole request; returns its job."""
        job = self.ask(prompt, headers).job
        self.book.finish(job, prompt, output)
        return job


@pytest.fixture
def front() -> _Front:
    return _Front()


_SOURCES: list[tuple[dict[str, str], dict[str, Any], str, str]] = [
    ({"X-Astraea-Job": "build", "X-Astraea-Agent": "coder"}, {}, "build/coder", "X-Astraea headers"),
    ({"X-Session-Id": "s-1"}, {}, "s-1", "X-Session-Id"),
    ({}, {"prompt_cache_key": "cache"}, "cache", "prompt_cache_key"),
    ({}, {"metadata": {"job_id": "a"}}, "a", "metadata.job_id"),
    ({}, {"metadata": {"session_id": "b"}}, "b", "metadata.session_id"),
    ({}, {"metadata": {"conversation_id": "c"}}, "c", "metadata.conversation_id"),
    ({}, {"metadata": {"thread_id": "d"}}, "d", "metadata.thread_id"),
]


@pytest.mark.parametrize(("headers", "body", "job", "source"), _SOURCES)
def test_every_name_a_client_may_send(
    front: _Front, headers: dict[str, str], body: dict[str, Any], job: str, source: str
) -> None:
    found = front.ask(_chat_prompt(1), headers, **body)
    assert (found.job, found.source) == (job, source)


def test_an_earlier_source_wins_over_all_later_ones(front: _Front) -> None:
    for first in range(len(_SOURCES)):
        headers: dict[str, str] = {}
        body: dict[str, Any] = {"metadata": {}}
        for sent, fields, _job, _source in _SOURCES[first:]:
            headers |= sent
            body = body | fields | {"metadata": body["metadata"] | fields.get("metadata", {})}
        assert front.ask(_chat_prompt(1), headers, **body).source == _SOURCES[first][3]


def test_a_name_wins_over_a_matching_conversation(front: _Front) -> None:
    front.call(_chat_prompt(1), 5, 6)
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 9), {"X-Session-Id": "mine"}).job == "mine"


@pytest.mark.parametrize(
    ("headers", "job"),
    [
        ({"X-Astraea-Job": "build"}, "build"),
        ({"X-Astraea-Agent": "coder"}, "coder"),
        ({"X-Astraea-Job": "  ", "X-Session-Id": "s"}, "s"),
        ({"X-Astraea-Job": "a\x1b[31m\tb"}, "a[31mb"),
        ({"X-Astraea-Job": "x" * 500}, "x" * 128),
    ],
)
def test_names_are_made_fit_to_be_shown(front: _Front, headers: dict[str, str], job: str) -> None:
    assert front.ask(_chat_prompt(1), headers).job == job


@pytest.mark.parametrize("metadata", [None, {}, {"job_id": 7}, {"job_id": ""}, {"user": "u"}])
def test_other_metadata_names_no_job(front: _Front, metadata: dict[str, Any] | None) -> None:
    assert front.ask(_chat_prompt(1), metadata=metadata).source == "new conversation"


def test_parent_priority_and_final_are_read(front: _Front) -> None:
    headers = {"X-Astraea-Parent": "lead", "X-Astraea-Priority": "-2", "X-Astraea-Final": "True"}
    found = front.ask(_chat_prompt(1), headers)
    assert (found.parent, found.priority, found.final) == ("lead", -2, True)
    plain = front.ask(_chat_prompt(2), {"X-Astraea-Final": "no"})
    assert (plain.parent, plain.priority, plain.final) == (None, None, False)


@pytest.mark.parametrize("value", ["10", "-10", "high", "", "1.5"])
def test_a_bad_priority_is_refused_by_name(front: _Front, value: str) -> None:
    with pytest.raises(ApiError, match=r"X-Astraea-Priority: .* from -9 to 9") as refused:
        front.ask(_chat_prompt(1), {"X-Astraea-Priority": value})
    assert refused.value.status == 400


def test_a_refused_request_does_not_keep_its_job_busy(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6)
    following = _tokens(*_chat_prompt(1), 5, 6, 9)
    with pytest.raises(ApiError):
        front.ask(following, {"X-Astraea-Priority": "high"})
    assert front.ask(following).job == job


def test_the_next_turn_of_a_conversation_is_the_same_job(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6)
    found = front.ask(_tokens(*_chat_prompt(1), 5, 6, 9, *_GENERATION))
    assert (found.job, found.source) == (job, "same conversation")


def test_the_old_generation_prompt_may_be_rendered_differently(front: _Front) -> None:
    job = front.call(_chat_prompt(1, 2), 5, 6)
    assert front.ask(_chat_prompt(1, 2, 3, 4)).job == job


def test_a_changed_last_message_is_another_conversation(front: _Front) -> None:
    job = front.call(_chat_prompt(1, 2), 5, 6)
    assert front.ask(_chat_prompt(1, 3, 4)).job != job


def test_equal_first_prompts_are_different_jobs(front: _Front) -> None:
    assert front.call(_chat_prompt(1), 5, 6) != front.call(_chat_prompt(1), 5, 6)


def test_a_retried_prompt_is_not_its_own_continuation(front: _Front) -> None:
    job = front.call(_chat_prompt(1, 2), 5)
    assert front.ask(_chat_prompt(1)).job != job
    assert front.ask(_chat_prompt(1, 2)).job != job


def test_after_equal_first_prompts_the_answers_tell_the_jobs_apart(front: _Front) -> None:
    first = front.call(_chat_prompt(1), 5, 6)
    second = front.call(_chat_prompt(1), 5, 8)
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 9)).job == first
    assert front.ask(_tokens(*_chat_prompt(1), 5, 8, 9)).job == second


def test_equal_conversations_go_to_the_one_used_last(front: _Front) -> None:
    jobs = []
    for now in (1.0, 2.0):
        front.now = now
        jobs.append(front.call(_chat_prompt(1), 5))
    assert front.ask(_tokens(*_chat_prompt(1), 5, 9)).job == jobs[1]


def test_the_longer_conversation_wins(front: _Front) -> None:
    front.call(_chat_prompt(1), 5, 6, headers={"X-Session-Id": "short"})
    long = _tokens(*_chat_prompt(1), 5, 6, 9, 9)
    front.call(long, 7, headers={"X-Session-Id": "long"})
    front.now = 5.0
    front.call(_chat_prompt(1), 5, 6, headers={"X-Session-Id": "latest"})
    assert front.ask(_tokens(*long, 7, 9)).job == "long"


def test_a_running_job_is_not_continued(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6)
    following = _tokens(*_chat_prompt(1), 5, 6, 9)
    assert front.ask(following).job == job
    assert front.ask(following).job != job


def test_a_job_is_busy_until_its_last_request_ends(front: _Front) -> None:
    headers = {"X-Session-Id": "s"}
    front.ask(_chat_prompt(1), headers)
    front.call(_chat_prompt(1), 5, 6, headers=headers)
    following = _tokens(*_chat_prompt(1), 5, 6, 9)
    assert front.ask(following).job != "s"
    front.book.finish("s", _chat_prompt(1), None)
    assert front.ask(following).job == "s"


def test_a_failed_request_leaves_the_conversation_as_it_was(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6)
    failed = _tokens(*_chat_prompt(1), 5, 6, 9)
    assert front.ask(failed).job == job
    front.book.finish(job, failed, None)
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 4)).job == job


def test_plain_completions_are_continued_only_by_their_whole_prompt(front: _Front) -> None:
    """They have no generation prompt: a few shared tokens at the start mean nothing."""
    prompt = _tokens(1, 20, 30, 40)
    job = front.complete(prompt).job
    front.book.finish(job, prompt, (50,))
    assert front.complete(_tokens(1, 60, 70, 80, 90)).job != job
    assert front.complete(_tokens(1, 20, 30, 40, 50, 60)).job == job


def test_a_tiny_chat_prompt_does_not_match_everything(front: _Front) -> None:
    job = front.call(_tokens(*_GENERATION), 5)
    assert front.ask(_chat_prompt(8)).job != job


def test_an_ended_job_is_not_continued(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6)
    front.book.end(job)
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 9)).job != job


def test_a_job_ended_while_it_ran_can_come_back(front: _Front) -> None:
    headers = {"X-Session-Id": "s"}
    prompt = _chat_prompt(1)
    front.ask(prompt, headers)
    front.book.end("s")
    front.ask(prompt, headers)
    front.book.finish("s", prompt, None)
    front.book.finish("s", prompt, (5, 6))
    assert front.ask(_tokens(*prompt, 5, 6, 9)).job == "s"


def test_a_job_idle_for_too_long_is_forgotten(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6)
    front.now = _IDLE_S
    front.call(_chat_prompt(2))
    assert front.book.completion_time(job) == 0.0
    front.now = _IDLE_S + 1
    front.call(_chat_prompt(3))
    assert front.book.completion_time(job) is None
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 9)).job != job


def test_of_very_many_jobs_the_oldest_idle_ones_are_forgotten(front: _Front) -> None:
    front.ask(_chat_prompt(0), {"X-Session-Id": "busy"})
    for number in range(1100):
        front.now = number / 1000
        front.call(_chat_prompt(number), headers={"X-Session-Id": f"s{number}"})
    known = [n for n in range(1100) if front.book.completion_time(f"s{n}") is not None]
    assert known == list(range(1100 - len(known), 1100))
    assert 1000 <= len(known) <= 1024
    assert front.book.completion_time("busy") is not None


def test_completion_time_spans_first_request_to_last_answer(front: _Front) -> None:
    for began, ended in ((1.0, 3.0), (10.0, 14.5)):
        front.now = began
        front.ask(_chat_prompt(1), {"X-Session-Id": "s"})
        front.now = ended
        front.book.finish("s", _chat_prompt(1), (5,))
    assert front.book.completion_time("s") == 13.5
    assert front.book.completion_time("unknown") is None


def test_new_jobs_have_different_names(front: _Front) -> None:
    names = [front.call(_chat_prompt(number)) for number in range(5)]
    assert len(set(names)) == 5
