"""Rates, the log without gaps or repetitions, and spans as frames showed them."""

from typing import Any

from astraea_local.frame import Event, StateFrame
from astraea_local.tui.trail import LOG_LINES, SAMPLES, Trail
from tests.tui.driving import START, frames, world

FRAME = frames(world(2), 1)[0]


def at(seconds: float, **changes: Any) -> StateFrame:
    return FRAME.model_copy(update={"at": START + seconds, "jobs": [], "events": []} | changes)


def events(*ids: int, numbered: bool = True) -> list[Event]:
    return [Event(id=i if numbered else 0, at=START + i, level="info", text=f"line {i}") for i in ids]


def tokens(decoded: int) -> Any:
    return FRAME.totals.model_copy(update={"decoded_tokens": decoded, "prefilled_tokens": 0})


def test_rates_are_differences_and_a_new_engine_is_no_negative_one() -> None:
    trail = Trail()
    for seconds, decoded in ((0, 100), (1, 150), (3, 250), (4, 10), (5, 20)):
        trail.add(at(seconds, totals=tokens(decoded)))
    assert list(trail.decode) == [50.0, 50.0, 10.0]


def test_the_log_has_each_event_once() -> None:
    trail = Trail()
    for number, shown in enumerate((events(1, 2, 3), events(2, 3, 4, 5), events(2, 3, 4, 5), events(9))):
        trail.add(at(number, events=shown))
    assert [event.id for event in trail.log] == [1, 2, 3, 4, 5, 9]


def test_events_without_numbers_are_told_apart_by_content() -> None:
    trail = Trail()
    trail.add(at(0, events=events(1, 2, numbered=False)))
    trail.add(at(1, events=events(1, 2, 3, numbered=False)))
    assert [event.text for event in trail.log] == ["line 1", "line 2", "line 3"]


def test_another_server_begins_to_count_again() -> None:
    trail = Trail()
    trail.add(at(0, events=events(70, 71)))
    trail.add(at(1, events=events(1, 2)))
    assert [event.id for event in trail.log] == [70, 71, 1, 2]


def test_spans_follow_the_states() -> None:
    job = FRAME.jobs[0]
    trail = Trail()
    for seconds, state, kv in (
        (0, "queued", "none"),
        (1, "prefill", "slot"),
        (2, "prefill", "slot"),
        (3, "decode", "slot"),
        (5, "waiting", "slot"),
        (8, "waiting", "ram"),
    ):
        row = job.model_copy(update={"job": "a", "state": state, "kv": kv, "since_s": 0.0})
        trail.add(at(seconds, jobs=[row]))
    found = [(span.kind, span.start - START, span.tier) for span in trail.spans("a")]
    assert [kind for kind, _, _ in found] == ["queued", "prefill", "decode", "tool", "parked"]
    assert found[-1][2] == "ram"
    assert trail.spans("a")[-1].end is None
    assert trail.spans("nobody") == []


def test_everything_is_bounded() -> None:
    trail = Trail()
    for number in range(SAMPLES + 50):
        trail.add(at(number, totals=tokens(number)))
    for number in range(LOG_LINES + 50):
        trail.note(number, "info", "x")
    assert len(trail.decode) == SAMPLES
    assert len(trail.log) == LOG_LINES
    assert trail.logged == LOG_LINES + 50
