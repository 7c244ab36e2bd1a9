"""Questions to the engine that wait for their answers."""

import asyncio

from astraea_local.engine.messages import Question, Reply


class Questions:
    """Each is answered once, by the engine or by its end; belongs to one asyncio loop."""

    def __init__(self) -> None:
        self._open: dict[int, asyncio.Future[Reply]] = {}

    def asked(self, question: Question) -> asyncio.Future[Reply]:
        """The reply to come."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._open[question.request] = future
        return future

    def answered(self, reply: Reply) -> None:
        """Hands a reply to whoever asked, if anyone still waits for it."""
        future = self._open.pop(reply.request, None)
        if future is not None and not future.done():
            future.set_result(reply)

    def withdrawn(self, question: Question) -> None:
        """Nobody waits for its reply any more, and none will come."""
        self._open.pop(question.request, None)

    def no_answer(self, why: str) -> None:
        """Answers all that are open with `unavailable`."""
        for request in list(self._open):
            self.answered(Reply(request, "unavailable", why))
