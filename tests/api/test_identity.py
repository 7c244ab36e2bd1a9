"""Which job a request belongs to, from what clients send anyway."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import Headers

from astraea_local.api.errors import ApiError
from astraea_local.api.hygiene import Outline
from astraea_local.api.identity import Identity, JobBook
from astraea_local.engine.binding import Tokens

_IDLE_S = 600.0
# What the chat template appends to make the model answer.
_GENERATION = (1, 77, 10)
# Of a chat whose parts do not matter here.
_OUTLINE = Outline(0, (), 0)


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

    def ask(
        self, prompt: Tokens, headers: dict[str, str] | None = None, tenant: str = "", **body: Any
    ) -> Identity:
        return self.book.identify(Headers(headers or {}), body, prompt, tenant=tenant, outline=_OUTLINE)

    def call(
        self, prompt: Tokens, *output: int, headers: dict[str, str] | None = None, tenant: str = ""
    ) -> str:
        """A whole request; returns its job."""
        job = self.ask(prompt, headers, tenant).job
        self.book.finish(job, prompt, output, _OUTLINE)
        return job

    def complete(self, prompt: Tokens, *output: int) -> str:
        """A whole plain completion."""
        job = self.book.identify(Headers({}), {}, prompt).job
        self.book.finish(job, prompt, output)
        return job


@pytest.fixture
def front() -> _Front:
    return _Front()


def test_a_name_wins_over_a_matching_conversation(front: _Front) -> None:
    front.call(_chat_prompt(1), 5, 6)
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 9), {"X-Session-Id": "mine"}).job == "mine"


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
    front.book.finish(job, failed, None, _OUTLINE)
    assert front.ask(_tokens(*_chat_prompt(1), 5, 6, 4)).job == job


def test_plain_completions_are_continued_only_by_their_whole_prompt(front: _Front) -> None:
    """They have no generation prompt: a few shared tokens at the start mean nothing."""
    job = front.complete(_tokens(1, 20, 30, 40), 50)
    assert front.complete(_tokens(1, 60, 70, 80, 90)) != job
    assert front.complete(_tokens(1, 20, 30, 40, 50, 60)) == job


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
    front.book.finish("s", prompt, (5, 6), _OUTLINE)
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


def test_two_conversations_under_one_name_are_both_known(front: _Front) -> None:
    """A client asks for a title between two turns, and its main conversation goes on."""
    headers = {"X-Session-Id": "s"}
    front.call(_chat_prompt(1, 2), 5, 6, headers=headers)
    front.call(_chat_prompt(9), 7, headers=headers)
    assert front.ask(_tokens(*_chat_prompt(1, 2), 5, 6, 9)).job == "s"


def test_the_same_name_under_another_key_is_another_job(front: _Front) -> None:
    headers = {"X-Session-Id": "s"}
    jobs = {front.call(_chat_prompt(1), 5, headers=headers, tenant=tenant) for tenant in ("", "ann", "bob")}
    assert jobs == {"s", "ann/s", "bob/s"}


def test_a_conversation_of_another_key_is_not_continued(front: _Front) -> None:
    job = front.call(_chat_prompt(1), 5, 6, tenant="ann")
    following = _tokens(*_chat_prompt(1), 5, 6, 9)
    assert front.ask(following, tenant="bob").job != job
    assert front.ask(following, tenant="ann").job == job


def test_a_sub_agent_is_a_child_within_its_key(front: _Front) -> None:
    headers = {"X-Claude-Code-Session-Id": "s", "X-Claude-Code-Agent-Id": "a"}
    found = front.ask(_chat_prompt(1), headers, tenant="ann")
    assert (found.job, found.parent) == ("ann/s/a", "ann/s")


def test_a_response_id_leads_back_to_its_job(front: _Front) -> None:
    first = front.ask(_chat_prompt(1), tenant="ann")
    front.book.remember(first, "resp_1")
    again = front.ask(_chat_prompt(8), tenant="ann", previous_response_id="resp_1")
    assert (again.job, again.source) == (first.job, "previous_response_id")
    assert front.ask(_chat_prompt(8), tenant="bob", previous_response_id="resp_1").job != first.job
    assert front.ask(_chat_prompt(8), tenant="ann", previous_response_id="resp_2").job != first.job


def test_a_persons_name_does_not_merge_runs_at_the_same_time(front: _Front) -> None:
    first = front.ask(_chat_prompt(1), user="ann")
    second = front.ask(_chat_prompt(2), user="ann")
    assert first.job == "ann"
    assert second.job != "ann"


def test_a_persons_name_gives_way_to_the_conversation(front: _Front) -> None:
    front.ask(_chat_prompt(1), user="ann")
    other = front.ask(_chat_prompt(2), user="ann").job
    front.book.finish(other, _chat_prompt(2), (5, 6), _OUTLINE)
    front.book.finish("ann", _chat_prompt(1), (5, 6), _OUTLINE)
    assert front.ask(_tokens(*_chat_prompt(2), 5, 6, 9), user="ann").job == other
    assert front.ask(_chat_prompt(7), user="ann").job == "ann"
