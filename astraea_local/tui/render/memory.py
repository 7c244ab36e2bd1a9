"""Where the memory of the machine is: the GPU, the KV cells, and the tiers that parked states go to."""

from dataclasses import dataclass

from rich.text import Text

from astraea_local.frame import MemoryRow, StateFrame
from astraea_local.tui.render.bars import bar
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.units import clean, count, fitted, percent, size

_LABEL = 6
_LEAST_BAR = 8
_MOST_WORDS = 44


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    parts: list[tuple[float, str]]
    words: str
    pressure: str | None = None
    marked: bool = True
    """Whether the watermarks are about this memory."""


def memory(frame: StateFrame, palette: Palette, width: int, height: int = 100) -> list[Text]:
    """A line for each memory there is, with its pressure, and as room allows the parts of the GPU's."""
    bars = [_cells(frame, palette), *_tiers(frame, palette)]
    if frame.memory.ram_total:
        bars.append(_host(frame.memory, palette))
    details: list[Text] = []
    if frame.memory.vram_total:
        vram, *details = _gpu(frame.memory, palette, width)
        bars.insert(0, vram)
    words = max(len(bar.words) + _pressure_width(bar) for bar in bars)
    words = min(_MOST_WORDS, words + _simulated_width(frame.memory))
    lines = [_line(bar, frame.memory, palette, width, words) for bar in bars]
    lines[1:1] = details[: max(0, height - len(lines))]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _gpu(memory: MemoryRow, palette: Palette, width: int) -> tuple[_Bar, Text, Text]:
    """Its bar, the legend of the bar, and the load."""
    total = memory.vram_total or 1
    free = memory.vram_free or 0
    used = total - free
    others = memory.vram_others or 0
    ours = max(0, used - others) if memory.vram_ours is None else memory.vram_ours
    # llama.cpp may have left part of either in host memory.
    weights = min(memory.weights_bytes, ours)
    kv = min(memory.context_bytes, ours - weights)
    compute = max(0, ours - weights - kv)
    parts = [
        (weights / total, palette.weights),
        (kv / total, palette.kv),
        (compute / total, palette.compute),
        (others / total, palette.others),
    ]
    words = f"{size(used)}/{size(total)}, {size(free)} free"
    bar_line = _Bar("VRAM", parts, words, memory.pressure.get("vram"))
    legend = Text(no_wrap=True, end="")
    for name, value, style in (
        ("weights", weights, palette.weights),
        ("KV", kv, palette.kv),
        ("compute", compute, palette.compute),
        ("others", others, palette.others),
    ):
        legend.append("■ ", style).append(f"{name} {size(value)} ")
    legend.rstrip()
    if legend.cell_len + _LABEL + 1 <= width:
        legend.pad_left(_LABEL + 1)
    facts = [clean(memory.gpu)] if memory.gpu else []
    if memory.gpu_load is not None:
        facts.append(f"load {percent(memory.gpu_load)}")
    if memory.gpu_temperature is not None:
        facts.append(f"{memory.gpu_temperature:.0f} °C")
    return bar_line, legend, Text(fitted("GPU", _LABEL + 1) + "  ".join(facts), no_wrap=True, end="")


def _cells(frame: StateFrame, palette: Palette) -> _Bar:
    kv = frame.kv
    total = max(1, kv.cells_total)
    busy = min(sum(slot.tokens for slot in frame.slots if slot.segment is not None), kv.cells_used)
    parts = [(busy / total, palette.decode), ((kv.cells_used - busy) / total, palette.kv)]
    words = f"{count(kv.cells_used)}/{count(kv.cells_total)} cells"
    if frame.memory.context_bytes:
        words += f", {size(frame.memory.context_bytes)}"
    return _Bar("KV", parts, words, frame.memory.pressure.get("cells"))


def _tiers(frame: StateFrame, palette: Palette) -> list[_Bar]:
    kv = frame.kv
    bars = []
    tiers = (
        ("parked", kv.ram_bytes, kv.ram_budget_bytes, kv.ram_states, None),
        ("disk", kv.disk_bytes, kv.disk_budget_bytes, kv.disk_states, frame.memory.pressure.get("disk")),
    )
    for name, used, budget, states, pressure in tiers:
        if budget or used:
            words = f"{size(used)}/{size(budget)}, {states} state{'' if states == 1 else 's'}"
            bars.append(_Bar(name, [(used / max(1, budget), palette.accent)], words, pressure, marked=False))
    return bars


def _host(memory: MemoryRow, palette: Palette) -> _Bar:
    total = max(1, memory.ram_total)
    used = max(0, total - memory.ram_available)
    ours = min(memory.ram_ours, used)
    parts = [(ours / total, palette.kv), ((used - ours) / total, palette.others)]
    words = f"{size(used)}/{size(total)}, engine {size(memory.ram_ours)}"
    return _Bar("RAM", parts, words, memory.pressure.get("ram"))


def _pressure_width(row: _Bar) -> int:
    return 0 if row.pressure in (None, "low") else len(row.pressure or "") + 1


def _simulated_width(memory: MemoryRow) -> int:
    return len(" simulated") if memory.simulated else 0


def _line(row: _Bar, memory: MemoryRow, palette: Palette, width: int, words: int) -> Text:
    marks = [v for k, v in memory.watermarks.items() if k != "low"] if row.marked else []
    room = max(_LEAST_BAR, width - _LABEL - 2 - words)
    text = Text(fitted(row.label, _LABEL) + " ", no_wrap=True, end="")
    text.append_text(bar(row.parts, room, palette, marks))
    text.append(" " + row.words)
    if row.pressure is not None and row.pressure != "low":
        text.append(f" {row.pressure}", palette.of_level(row.pressure))
    if memory.simulated and row.marked:
        text.append(" simulated", palette.warn)
    text.truncate(width, overflow="ellipsis")
    return text
