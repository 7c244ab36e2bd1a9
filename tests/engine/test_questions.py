"""Questions that wait for their answers."""

import asyncio

from astraea_local.engine.messages import AskJob, Reply
from astraea_local.engine.questions import Questions


async def test_an_answer_reaches_who_asked() -> None:
    questions = Questions()
    first, second = questions.asked(AskJob(1, "a")), questions.asked(AskJob(2, "b"))
    questions.answered(Reply(2, "done", "two"))
    assert (await second).text == "two"
    assert not first.done()
    questions.no_answer("the engine died")
    assert (await first) == Reply(1, "unavailable", "the engine died")


async def test_an_answer_for_which_nobody_waits_is_dropped() -> None:
    questions = Questions()
    asked = questions.asked(AskJob(1, "a"))
    asked.cancel()
    await asyncio.sleep(0)
    questions.answered(Reply(1, "done", "late"))
    questions.answered(Reply(9, "done", "unknown"))
    assert asked.cancelled()
