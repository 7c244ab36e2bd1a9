"""Throughput and job completion times as they went."""

from collections.abc import Sequence

from rich.text import Text

from astraea_local.frame import CompletionRow, StateFrame
from astraea_local.tui.render.bars import graph
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.units import fitted, percent, rate, seconds
from astraea_local.tui.trail import Trail

_LABEL = 8


def charts(frame: StateFrame, trail: Trail, palette: Palette, width: int, height: int) -> list[Text]:
    """Figures of completion and speed, and as many graphs as there are lines for."""
    lines = [_completion(frame.completion, palette), *_speed(frame, palette)]
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


def _completion(row: CompletionRow, palette: Palette) -> Text:
    text = Text(fitted("jobs", _LABEL), no_wrap=True, end="")
    text.append(f"{row.finished} done")
    if not row.finished:
        return text
    text.append(f"  mean {seconds(row.mean_s)}  p95 {seconds(row.p95_s)}")
    if row.fcfs_mean_s is not None and row.fcfs_p95_s is not None:
        text.append(f"  FCFS ~{seconds(row.fcfs_mean_s)} / {seconds(row.fcfs_p95_s)}", palette.dim)
        if row.fcfs_mean_s > 0:
            gain = row.mean_s / row.fcfs_mean_s - 1
            style = palette.ok if gain < 0 else palette.warn
            text.append(f"  {'+' if gain > 0 else '−' if gain < 0 else ''}{percent(abs(gain))}", style)
    return text


def _speed(frame: StateFrame, palette: Palette) -> list[Text]:
    speed, totals = frame.speed, frame.totals
    text = Text(fitted("speed", _LABEL), no_wrap=True, end="")
    text.append(f"prefill {rate(speed.prefill_tokens_s)}/s  decode {rate(speed.decode_tokens_s)}/s  ")
    text.append(f"step {1000 * speed.decode_step_s:.0f} ms  width {speed.width}", palette.dim)
    counts = Text(fitted("calls", _LABEL), no_wrap=True, end="")
    counts.append(f"{totals.segments_finished} done")
    if totals.prompt_tokens:
        counts.append(f"  {percent(totals.cached_tokens / totals.prompt_tokens)} cached", palette.kv)
    counts.append(f"  {totals.preemptions} preemptions", palette.dim)
    if totals.segments_failed:
        counts.append(f"  {totals.segments_failed} failed", palette.bad)
    return [text, counts]


def _graph(
    name: str, values: Sequence[float], style: str, palette: Palette, width: int, height: int
) -> list[Text]:
    newest = values[-1] if values else 0.0
    top = max(values, default=0.0)
    unit = seconds if name == "JCT" else rate
    labels = [name, unit(newest), f"≤{unit(top)}"] if height >= 3 else [f"{name[:3]}{unit(newest):>5}", ""]
    made = []
    for index, row in enumerate(graph(values, max(0, width - _LABEL), height)):
        label = labels[index] if index < len(labels) else ""
        text = Text(fitted(label, _LABEL), style=palette.dim if index else palette.text, no_wrap=True, end="")
        made.append(text.append(row, style))
    return made
