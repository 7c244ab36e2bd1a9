"""What is asked of the server, over a transport that records it."""

import json
from collections.abc import Callable

import httpx
import pytest

from astraea_local.past_jobs import Query
from astraea_local.tui.actions import Action, ActionError, HttpControl, Refusing

Answer = Callable[[httpx.Request], httpx.Response]


def control(answer: Answer, *, readonly: bool = False) -> HttpControl:
    client = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(answer))
    return HttpControl(client, readonly=readonly)


@pytest.mark.parametrize(
    ("action", "path", "body"),
    [
        (Action("park", "coder-1"), "/astraea/v1/jobs/coder-1/park", None),
        (Action("pin", "team/a b?"), "/astraea/v1/jobs/team%2Fa%20b%3F/pin", None),
        (Action("priority", "x", {"priority": -2}), "/astraea/v1/jobs/x/priority", {"priority": -2}),
        (Action("pause scheduling"), "/astraea/v1/scheduler/pause", None),
        (Action("policy", None, {"policy": "fcfs"}), "/astraea/v1/policy", {"policy": "fcfs"}),
        (
            Action("resize", None, {"size": 4096, "slots": 2}),
            "/astraea/v1/context",
            {"size": 4096, "slots": 2},
        ),
        (Action("resume server"), "/astraea/v1/resume", None),
    ],
)
async def test_an_action_is_a_post(action: Action, path: str, body: object) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"done": "it is done"})

    assert await control(answer).act(action) == "it is done"
    assert seen[0].method == "POST"
    assert seen[0].url.raw_path.decode() == path
    assert (json.loads(seen[0].content) if seen[0].content else None) == body


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _: httpx.Response(404, json={"error": {"message": "no job named x"}}), "no job named x"),
        (lambda _: httpx.Response(500, text="oops"), "HTTP 500"),
        (lambda _: httpx.Response(200, text="oops"), "not JSON"),
    ],
)
async def test_a_refusal_says_why(answer: Answer, words: str) -> None:
    with pytest.raises(ActionError, match=words):
        await control(answer).act(Action("park", "x"))


async def test_no_answer_is_an_error_and_no_exception_of_the_client() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ActionError, match="did not answer"):
        await control(answer).act(Action("park", "x"))


async def test_readonly_sends_nothing_but_reads() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == "GET"
        return httpx.Response(200, json={"policies": [{"name": "fcfs", "summary": "first come"}]})

    asking = control(answer, readonly=True)
    with pytest.raises(ActionError, match="--readonly"):
        await asking.act(Action("pin", "x"))
    assert await asking.policies() == [("fcfs", "first come")]


async def test_an_answer_of_another_version_is_told() -> None:
    asking = control(lambda _: httpx.Response(200, json={"jobs": "none"}))
    with pytest.raises(ActionError, match="another version"):
        await asking.history(Query())
    with pytest.raises(ActionError, match="another version"):
        await asking.detail("x")
    with pytest.raises(ActionError, match="another version"):
        await asking.policies()


def test_only_what_hurts_is_asked() -> None:
    asked = {verb for verb in ("drop", "cancel") if Action(verb, "x").question}
    assert asked == {"drop", "cancel"}
    assert Action("resize", None, {"size": 4096, "slots": 2}).question.count("4096") == 1
    assert not Action("pin", "x").question
    assert not Action("resume server").question


def test_names_that_try_to_draw_do_not() -> None:
    evil = Action("cancel", "a\x1b[2J\u202eb")
    assert "\x1b" not in evil.question + evil.text
    assert "\u202e" not in evil.question + evil.text
    assert evil.path == "jobs/a%1B%5B2J%E2%80%AEb/cancel"


async def test_a_recording_refuses_everything() -> None:
    for asked in (Refusing().act(Action("pin", "x")), Refusing().detail("x"), Refusing().history(Query())):
        with pytest.raises(ActionError, match="record"):
            await asked
