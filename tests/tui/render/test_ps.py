"""The job table in plain text, and its cells."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from astraea_local.frame import JobRow, KvRow, ServerInfo, SpeedRow, StateFrame, Totals
from astraea_local.tui.render import job_table, kv_place, seconds

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _job(**fields: Any) -> JobRow:
    usual = {
        "job": "coder-1",
        "state": "decode",
        "queue": 0,
        "tokens": 1234,
        "attained": 2000,
        "segments": 3,
        "kv": "slot",
        "kv_tokens": 1200,
        "waited_s": 12.3,
        "since_s": 0.44,
        "reason": "Q0, ratio 1.3: waited 12.3 s, needs 10.1 s (200 tokens uncached)",
    }
    return JobRow.model_validate(usual | fields)


def _frame(*jobs: JobRow) -> StateFrame:
    return StateFrame(
        at=1.7e9,
        uptime_s=60.0,
        server=ServerInfo(
            version="0.1.0",
            model="tiny",
            model_class="full attention",
            profile="default",
            policy="astraea",
            layout="per_slot",
            slots=4,
            context=8192,
            job_context=2048,
            offloaded="none",
            pid=1,
        ),
        jobs=list(jobs),
        queue=[],
        slots=[],
        kv=KvRow(
            cells_used=0,
            cells_total=8192,
            ram_bytes=0,
            ram_budget_bytes=0,
            ram_states=0,
            parks=0,
            restores=0,
            restore_failures=0,
            evictions=0,
            park_s=0.0,
            restore_s=0.0,
        ),
        speed=SpeedRow(prefill_tokens_s=200.0, decode_step_s=0.01, decode_tokens_s=100.0, width=2),
        steps={},
        totals=Totals(),
        events=[],
    )


def _lines(frame: StateFrame, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(job_table(frame))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_one_line_for_each_job() -> None:
    frame = _frame(
        _job(reason="Q0, ratio 1.3: waited 12.3 s, needs 10.1 s"),
        _job(
            job="review",
            state="waiting",
            kv="ram",
            tokens=45678,
            kv_tokens=45678,
            segments=12,
            waited_s=75,
            since_s=4000,
            reason="",
        ),
        _job(job="new", state="queued", kv="none", kv_tokens=0, queue=2, segments=0, reason="waits"),
    )
    assert _lines(frame, 80) == [
        "AGENT   STATE   QUEUE TOKENS KV        CALLS WAITED SINCE REASON",
        "coder-1 decode  Q0      1234 slot 1200     3 12s    0.4s  Q0, ratio 1.3: waited…",
        "review  waiting Q0     45678 ram 45678    12 1m15   1h06",
        "new     queued  Q2      1234 -             0 12s    0.4s  waits",
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_long_names_and_reasons_leave_the_figures_readable(width: int) -> None:
    long = _job(job="reviewer/" * 12, state="waiting", reason="because " * 40)
    header, line = _lines(_frame(long), width)
    assert len(line) <= width
    assert line.startswith("reviewer/reviewer/r… waiting Q0")
    for value in ("1234", "slot 1200", "12s", "0.4s"):
        assert re.search(rf"(^| ){value}( |$)", line)
    for name in ("QUEUE", "TOKENS", "KV", "CALLS", "WAITED", "SINCE"):
        assert name in header


def test_a_wide_terminal_shows_the_whole_reason() -> None:
    reason = "Q0, ratio 1.3: waited 12.3 s, needs 10.1 s (200 tokens uncached)"
    assert _lines(_frame(_job()), 140)[1].endswith(f"  {reason}")


def test_brackets_in_a_name_are_shown_as_they_are() -> None:
    lines = _lines(_frame(_job(job="[bold]a[/]", reason="gave way to [/b]")))
    assert lines[1].startswith("[bold]a[/] ")
    assert lines[1].endswith("gave way to [/b]")


def test_without_jobs_there_is_only_the_header() -> None:
    assert len(_lines(_frame())) == 1


def test_place_of_the_kv() -> None:
    assert kv_place(_job(kv="ram", kv_tokens=17)) == "ram 17"
    assert kv_place(_job(kv="none", kv_tokens=0)) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0s"),
        (0.44, "0.4s"),
        (9.9, "9.9s"),
        (12, "12s"),
        (59.4, "59s"),
        (60, "1m00"),
        (185, "3m05"),
        (3599.9, "59m59"),
        (7800, "2h10"),
        (359_999, "99h59"),
        (360_000, "4d04"),
        (86400 * 100, "100d"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


def _read(text: str) -> float:
    """The duration that a person reads."""
    parts = re.fullmatch(r"(\d+|\d\.\d|10\.0)([smhd])(\d\d)?", text)
    assert parts is not None, text
    below = {"s": 0, "m": 1, "h": 60, "d": 3600}[parts[2]]
    return float(parts[1]) * _UNITS[parts[2]] + int(parts[3] or 0) * below


@given(st.floats(0, 86400 * 9999))
def test_a_duration_is_short_and_nearly_right(value: float) -> None:
    assert len(seconds(value)) <= 5
    assert abs(_read(seconds(value)) - value) <= max(0.51, value / 60)


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_a_longer_duration_never_looks_shorter(a: float, b: float) -> None:
    assert _read(seconds(min(a, b))) <= _read(seconds(max(a, b)))
