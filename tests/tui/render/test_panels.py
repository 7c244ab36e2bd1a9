"""The lines of header, memory, completion, timeline, KV map, advice and the whole frame."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.text import Text

from astraea_local.frame import StateFrame
from astraea_local.job_detail import JobDetail, Span
from astraea_local.tui.advisor import Advice
from astraea_local.tui.render.advice import advice_lines
from astraea_local.tui.render.completion import charts
from astraea_local.tui.render.gantt import axis, gantt, tree
from astraea_local.tui.render.header import header, summary, waiting
from astraea_local.tui.render.kv_map import cells, figures
from astraea_local.tui.render.memory import memory
from astraea_local.tui.render.once import once
from astraea_local.tui.render.palette import PLAIN
from astraea_local.tui.render.rows import AGENTS, QUEUED
from astraea_local.tui.render.table import fit, line
from astraea_local.tui.render.units import seconds
from astraea_local.tui.trail import Trail
from tests.tui.driving import frames, world


@pytest.fixture(scope="module")
def frame() -> StateFrame:
    return frames(world(24), 1)[0]


def plain(lines: list[Text]) -> list[str]:
    return [line.plain.rstrip() for line in lines]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(
    "render",
    [
        lambda f, w: header(f, "no server answers; trying again", PLAIN, w),
        lambda f, w: [summary(f, PLAIN, w)],
        lambda f, w: waiting("loading the model, 43%", PLAIN, w),
        lambda f, w: memory(f, PLAIN, w),
        lambda f, w: cells(f, PLAIN, w),
        lambda f, w: figures(f, PLAIN, w),
        lambda f, w: charts(f, Trail(), PLAIN, w, 9),
        lambda f, w: gantt([Span(kind="decode", start=f.at - 9)], f.at, 20, PLAIN, w),
        lambda f, w: advice_lines([Advice("warning", "too much " * 30, "kv.layout")], PLAIN, w),
    ],
    ids=["header", "summary", "waiting", "memory", "cells", "figures", "charts", "gantt", "advice"],
)
def test_lines_fit_the_width(
    frame: StateFrame, width: int, render: Callable[[StateFrame, int], list[Text]]
) -> None:
    lines = render(frame, width)
    assert lines
    assert all(line.cell_len <= width for line in lines)


def test_the_header_names_what_is_served_and_how_it_is(frame: StateFrame) -> None:
    sick = frame.model_copy(update={"status": "restarting", "restarts": 2, "scheduling_paused": True})
    first, second = plain(header(sick, "", PLAIN, 200))
    for words in ("restarting", "2 restarts", "scheduling paused", "policy astraea", "up "):
        assert words in first
    for words in ("mock-8b", "Q4_K_M", "8.0B parameters", "6 slots", "98,304 cells unified"):
        assert words in second


def test_the_header_of_a_server_that_is_gone_says_what_it_was(frame: StateFrame) -> None:
    first, _ = plain(header(frame, "no server answers; trying again", PLAIN, 120, stale=True))
    assert "○ it was ready  no server answers; trying again" in first
    assert "●" not in first


@pytest.mark.parametrize("width", [77, 78, 115])
def test_agents_show_their_tool_and_its_time_at_80_columns_and_their_next_move_at_120(
    frame: StateFrame, width: int
) -> None:
    job = next(job for job in frame.jobs if job.next_move_s is not None)
    shown = line(fit(AGENTS, width), job, PLAIN).plain
    for words in (job.job, job.tool, f"~{seconds(job.wait_p50_s or 0)} ≤", f"{job.kv} "):
        assert words in shown
    assert (f"in {seconds(job.next_move_s or 0)}: {job.next_move}" in shown) == (width > 100)


def test_a_preempted_call_has_nothing_new_that_is_less_than_nothing(frame: StateFrame) -> None:
    preempted = frame.queue[0].model_copy(update={"prompt_tokens": 900, "cached_tokens": 1012})
    columns = tuple((column, 5) for column in QUEUED if column.title == "NEW")
    assert line(columns, preempted, PLAIN).plain == "    0"


def test_rendering_needs_no_textual() -> None:
    code = "import sys, astraea_local.tui.render.once, astraea_local.tui.render.gantt; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not [name for name in run.stdout.split() if name.partition(".")[0] == "textual"]


def test_memory_of_a_gpu_is_split_and_its_pressure_named(frame: StateFrame) -> None:
    lines = plain(memory(frame, PLAIN, 120))
    assert lines[0].startswith("VRAM ")
    assert "weights 4.9G" in lines[1]
    assert "others " in lines[1]
    critical = frame.model_copy(
        update={
            "memory": frame.memory.model_copy(update={"pressure": {"vram": "critical"}, "simulated": True})
        }
    )
    assert plain(memory(critical, PLAIN, 120))[0].endswith("critical simulated")


def test_without_a_gpu_there_are_no_lines_about_one(frame: StateFrame) -> None:
    bare = frame.model_copy(update={"memory": frame.memory.model_copy(update={"vram_total": None})})
    assert not any(line.startswith(("VRAM", "GPU")) for line in plain(memory(bare, PLAIN, 120)))


def test_where_room_is_short_the_legend_goes_first(frame: StateFrame) -> None:
    assert len(memory(frame, PLAIN, 120, 7)) == 7
    short = plain(memory(frame, PLAIN, 120, 5))
    assert len(short) == 5
    assert not any("weights" in line for line in short)


def test_completion_is_set_beside_first_come_first_served(frame: StateFrame) -> None:
    done = frame.completion.model_copy(
        update={"finished": 9, "mean_s": 30.0, "p95_s": 60.0, "fcfs_mean_s": 40.0, "fcfs_p95_s": 80.0}
    )
    trail = Trail()
    for each in frames(world(), 30):
        trail.add(each)
    lines = plain(charts(frame.model_copy(update={"completion": done}), trail, PLAIN, 100, 15))
    assert lines[0] == "jobs    9 done  mean 30s  p95 1m00  FCFS ~40s / 1m20  −25%"
    narrow = plain(charts(frame.model_copy(update={"completion": done}), trail, PLAIN, 55, 15))
    assert narrow[0] == "jobs    9 done  mean 30s  p95 1m00  FCFS ~40s  −25%"
    assert narrow[1].endswith(" ms")
    assert len(lines) == 15
    assert any("█" in line for line in lines[3:])


def test_a_timeline_shows_spans_where_they_were() -> None:
    spans = [
        Span(kind="queued", start=0, end=25),
        Span(kind="prefill", start=25, end=50),
        Span(kind="parked", start=50, end=75, tier="disk"),
        Span(kind="decode", start=75),
    ]
    rows = {line[:9].strip(): line[9:] for line in plain(gantt(spans, 100, 100, PLAIN, 49))}
    assert rows["queued"] == "█" * 10
    assert rows["prefill"] == " " * 10 + "█" * 10
    assert rows["parked"] == " " * 20 + "▒" * 10
    assert rows["decode"] == " " * 30 + "█" * 10
    assert rows["paused"] == ""


def test_an_axis_ends_now() -> None:
    assert len(axis(600, 60)) == 60
    assert axis(600, 60).endswith("now┊")
    assert axis(600, 60).startswith("┊-10m00")


def test_a_family_is_a_tree(frame: StateFrame) -> None:
    root, child, grandchild = frame.jobs[:3]
    jobs = [
        root.model_copy(update={"job": "root", "parent": None}),
        child.model_copy(update={"job": "child", "parent": "root"}),
        grandchild.model_copy(update={"job": "grandchild", "parent": "child"}),
    ]
    detail = JobDetail(
        at=0, job="child", parent="root", state="waiting", created=0, segments=[], spans=[], children=["gone"]
    )
    lines = plain(tree(jobs, detail, PLAIN))
    assert lines[0].startswith("root  ")
    assert lines[1].startswith("└─ child")
    assert lines[2].startswith("   ├─ grandchild")
    assert lines[3].startswith("   └─ gone  gone")


def test_a_job_that_is_its_own_ancestor_ends_the_tree(frame: StateFrame) -> None:
    jobs = [
        frame.jobs[0].model_copy(update={"job": "a", "parent": "b"}),
        frame.jobs[1].model_copy(update={"job": "b", "parent": "a"}),
    ]
    detail = JobDetail(at=0, job="a", parent="b", state="waiting", created=0, segments=[], spans=[])
    assert len(tree(jobs, detail, PLAIN)) == 2


def test_a_family_of_any_depth_is_drawn(frame: StateFrame) -> None:
    jobs = [frame.jobs[0].model_copy(update={"job": f"j{n}", "parent": f"j{n - 1}"}) for n in range(1, 3000)]
    detail = JobDetail(at=0, job="j2", parent="j1", state="waiting", created=0, segments=[], spans=[])
    lines = plain(tree(jobs, detail, PLAIN))
    assert len(lines) == 3000
    assert max(map(len, lines)) < 120
    assert "j2999  " in lines[-1]


def test_the_kv_map_has_a_line_for_each_slot_and_counts_losses(frame: StateFrame) -> None:
    assert len(cells(frame, PLAIN, 100)) == len(frame.slots)
    lossy = frame.model_copy(update={"kv": frame.kv.model_copy(update={"restore_failures": 3})})
    assert plain(figures(lossy, PLAIN, 120))[-1] == "3 states were lost and recomputed"


def test_advice_names_its_field_first() -> None:
    (line,) = plain(advice_lines([Advice("error", "raise it", "context.size")], PLAIN, 80))
    assert line == "✗ context.size: raise it"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_whole_frame_in_plain_lines(frame: StateFrame, width: int) -> None:
    lines = plain(list(once(frame, PLAIN, width)))
    assert all(len(line) <= width for line in lines)
    for title in (f"SLOTS ({len(frame.slots)})", f"AGENTS ({len(frame.jobs)})", "EVENTS (10)"):
        assert title in lines
