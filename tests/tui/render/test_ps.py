"""The table of `ps` in plain text, and its cells."""

import re
from typing import Any

import pytest
from rich.console import Console

from astraea_local.frame import JobRow, KvRow, ServerInfo, SpeedRow, StateFrame, Totals
from astraea_local.tui.render.ps import job_table, kv_place


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
