"""Throughput and job completion times as they went."""

from collections.abc import Sequence

from rich.text import Text

from astraea_local.frame import CompletionRow, StateFrame
from astraea_local.tui.render.bars import graph
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.parts import joined
from astraea_local.tui.render.units import fitted, percent, rate, seconds
from astraea_local.tui.trail import Trail

_LABEL = 8
_MARGIN = _LABEL + 1
"""Of the graphs, whose figures would touch their first column otherwise."""


def charts(frame: StateFrame, trail: Trail, palette: Palette, width: int, height: int) -> list[Text]:
    """Figures of completion and speed, and as many graphs as there are lines for."""
    lines = [_completion(frame.completion, palette, width), *_speed(frame, palette, width)]
    room = height - len(lines)
    series = (
        ("decode", trail.decode, palette.decode),
        ("prefill", trail.prefill, palette.prefill),
        ("queued", trail.queued, palette.queued),
        ("JCT", trail.completion, palette.accent),
    )
    shown = series[: max(0, min(len(series), room))]
    for index, (name, values, style) in enumerate(shown):
        tall = room // len(shown) + (index < room % len(shown))
        lines += _graph(name, list(values), style, palette, width, tall)
    return lines[:height]


def _completion(row: CompletionRow, palette: Palette, width: int) -> Text:
    label = fitted("jobs", _LABEL)
    parts = [(f"{row.finished} done", "")]
    if row.finished:
        parts.append((f"mean {seconds(row.mean_s)}  p95 {seconds(row.p95_s)}", ""))
    if not row.finished or row.fcfs_mean_s is None or row.fcfs_p95_s is None:
        return joined(parts, width, label)
    gain = row.mean_s / row.fcfs_mean_s - 1 if row.fcfs_mean_s > 0 else 0.0
    sign = "+" if gain > 0 else "−" if gain < 0 else ""
    compared = (f"{sign}{percent(abs(gain))}", palette.ok if gain < 0 else palette.warn)
    means = f"FCFS ~{seconds(row.fcfs_mean_s)}"
    whole = joined([*parts, (f"{means} / {seconds(row.fcfs_p95_s)}", palette.dim), compared], width, label)
    # What is gained says more than how it is composed.
    return (
        whole
        if compared[0] in whole.plain
        else joined([*parts, (means, palette.dim), compared], width, label)
    )


def _speed(frame: StateFrame, palette: Palette, width: int) -> list[Text]:
    speed, totals = frame.speed, frame.totals
    speeds = [
        (f"prefill {rate(speed.prefill_tokens_s)}/s", ""),
        (f"decode {rate(speed.decode_tokens_s)}/s", ""),
        (f"step {1000 * speed.decode_step_s:.0f} ms", palette.dim),
        (f"width {speed.width}", palette.dim),
    ]
    calls = [(f"{totals.segments_finished} done", "")]
    if totals.prompt_tokens:
        calls.append((f"{percent(totals.cached_tokens / totals.prompt_tokens)} cached", palette.kv))
    calls.append((f"{totals.preemptions} preemptions", palette.dim))
    if totals.segments_failed:
        calls.append((f"{totals.segments_failed} failed", palette.bad))
    return [joined(speeds, width, fitted("speed", _LABEL)), joined(calls, width, fitted("calls", _LABEL))]


def _graph(
    name: str, values: Sequence[float], style: str, palette: Palette, width: int, height: int
) -> list[Text]:
    unit = seconds if name == "JCT" else rate
    newest, top = (unit(values[-1]), f"≤{unit(max(values))}") if values else ("-", "")
    labels = [name, newest, top] if height >= 3 else [f"{name[:3]}{newest:>5}", ""]
    made = []
    for index, row in enumerate(graph(values, max(0, width - _MARGIN), height)):
        label = labels[index] if index < len(labels) else ""
        text = Text(
            fitted(label, _MARGIN), style=palette.dim if index else palette.text, no_wrap=True, end=""
        )
        made.append(text.append(row, style))
    return made
