"""The numbering of the event log."""

from astraea_local.engine.eventlog import EngineLog, EventLog
from astraea_local.frame import Event


def _lines(first: int, last: int, text: str = "line") -> list[Event]:
    return [Event(id=i, at=1.7e9, level="info", text=f"{text} {i}") for i in range(first, last + 1)]


def _ids(log: EventLog) -> list[int]:
    return [line.id for line in log.lines]


def test_lines_are_taken_once_whatever_is_repeated() -> None:
    log = EventLog()
    log.take(_lines(1, 3))
    log.take(_lines(1, 5))
    log.take(_lines(1, 5))
    assert _ids(log) == [1, 2, 3, 4, 5]


def test_the_numbering_goes_on_over_lives_of_the_engine_and_lines_of_the_front() -> None:
    log = EventLog()
    log.take(_lines(1, 2, "first"))
    log.add(Event(at=1.7e9, level="error", text="the engine died"))
    log.begin_life()
    log.take(_lines(1, 2, "second"))
    assert [(line.id, line.text) for line in log.lines] == [
        (1, "first 1"),
        (2, "first 2"),
        (3, "the engine died"),
        (4, "second 1"),
        (5, "second 2"),
    ]


def test_lines_that_were_lost_leave_a_gap() -> None:
    log = EventLog()
    log.take(_lines(1, 2))
    log.take(_lines(40, 41))
    assert _ids(log) == [1, 2, 40, 41]


def test_it_is_bounded() -> None:
    log = EventLog()
    for start in range(1, 10_000, 100):
        log.take(_lines(start, start + 99))
    assert len(log.lines) == 200
    assert _ids(log)[-1] == 10_000


def test_the_engine_numbers_its_lines_from_one_and_keeps_the_latest() -> None:
    log = EngineLog()
    for number in range(1, 251):
        log.note("info", f"line {number}")
    assert (log.lines[0].id, log.lines[-1].id, len(log.lines)) == (51, 250, 200)
    assert log.lines[-1].text == "line 250"
