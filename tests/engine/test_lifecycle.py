"""What the front is told of a segment, from its submission to its end."""

from collections.abc import Sequence

import pytest

from astraea_local.engine.messages import Cancel, Delta, Paused, Started, ToFront
from tests.engine.harness import MakeHarness, prompt

_NEVER_MS = 3_600_000


def deltas(messages: Sequence[ToFront]) -> list[str]:
    """The texts of a stream's pieces."""
    return [message.text for message in messages if isinstance(message, Delta)]


def test_a_prompt_that_is_too_long_fails_alone(harness: MakeHarness) -> None:
    """The others go on."""
    h = harness()
    good = h.submit("good", prompt(1, 30))
    bad = h.submit("bad", prompt(2, 256))
    h.run()
    assert h.failed(bad).code == "context_length_exceeded"
    assert "256" in h.failed(bad).message
    assert h.finished(good).reason == "length"


def test_cancelling_frees_the_slot_at_once(harness: MakeHarness) -> None:
    """Queued or running, a cancelled segment is gone before the next step."""
    h = harness(context__slots=1, context__size=512)
    running, queued = h.submit("a", prompt(1, 30), 400), h.submit("b", prompt(2, 30), 400)
    for _ in range(5):
        h.core.step()
    h.core.cancel(Cancel(queued))
    h.core.cancel(Cancel(running))
    assert not h.core.busy
    assert all(s.segment is None for s in h.core.table)
    h.run()
    assert {h.finished(running).reason, h.finished(queued).reason} == {"cancelled"}
    h.core.cancel(Cancel(running))  # a second time, and for one that is unknown
    assert h.ask("c", prompt(3, 30), 4).output_tokens == 4


@pytest.mark.parametrize("interval_ms", [0, _NEVER_MS])
def test_streams_and_whole_answers_are_the_same_text(harness: MakeHarness, interval_ms: int) -> None:
    """Deltas plus the rest equal what a request without streaming gets; the first token never waits."""
    h = harness(server__stream_interval_ms=interval_ms)
    streamed = h.ask("a", prompt(1, 30), 40)
    pieces = deltas(h.messages)
    whole = h.ask("b", prompt(1, 30), 40, stream=False)
    assert "".join(pieces) + streamed.text == whole.text
    assert (len(pieces) == 1) == bool(interval_ms)


def test_a_stream_goes_on_when_its_interval_has_passed(harness: MakeHarness) -> None:
    h = harness(server__stream_interval_ms=_NEVER_MS)
    h.submit("a", prompt(1, 30), 100)
    for _ in range(30):
        h.core.step()
    assert len(deltas(h.core.take_messages())) == 1
    h.ahead_s += _NEVER_MS / 1000
    for _ in range(30):
        h.core.step()
    assert len(deltas(h.core.take_messages())) == 1


def test_a_stream_has_all_of_its_text_before_a_pause(harness: MakeHarness) -> None:
    h = harness(server__stream_interval_ms=_NEVER_MS)
    h.submit("a", prompt(1, 30), 100)
    for _ in range(30):
        h.core.step()
    h.core.detach()
    told = h.core.take_messages()
    assert [type(message) for message in told] == [Started, Delta, Delta, Paused]
