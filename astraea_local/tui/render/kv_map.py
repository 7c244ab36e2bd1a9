"""Whose KV is where: the cells of the context by slot, and the states that are parked."""

from rich.text import Text

from astraea_local.frame import SlotRow, StateFrame
from astraea_local.tui.render.bars import meter
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.parts import joined, wrapped
from astraea_local.tui.render.units import clean, count, fitted, percent, size

_NAME = 16
_WORDS = 24


def cells(frame: StateFrame, palette: Palette, width: int) -> list[Text]:
    """A line for each slot: whose tokens fill how much of what it may hold."""
    limit = max(1, frame.server.job_context)
    return [_slot(slot, limit, frame, palette, width) for slot in frame.slots]


def _slot(slot: SlotRow, limit: int, frame: StateFrame, palette: Palette, width: int) -> Text:
    style = palette.of_state(slot.phase) if slot.segment is not None else palette.kv
    text = Text(f"{slot.slot:>2} ", style=palette.dim, no_wrap=True, end="")
    text.append(fitted(clean(slot.job or "-"), _NAME) + " ", palette.text)
    share = slot.tokens / limit
    text.append_text(meter(share, max(4, width - _NAME - 5 - _WORDS), style, palette))
    per_cell = frame.memory.context_bytes / max(1, frame.kv.cells_total)
    words = f" {count(slot.tokens)} {percent(share)}"
    if per_cell:
        words += f" {size(slot.tokens * per_cell)}"
    text.append(fitted(words, _WORDS - 9))
    return text.append(f" {slot.phase}", style if slot.segment is not None else palette.dim)


def figures(frame: StateFrame, palette: Palette, width: int) -> list[Text]:
    """What was moved, what it cost, and what sharing saved."""
    kv = frame.kv
    mean_park = 1000 * kv.park_s / kv.parks if kv.parks else 0.0
    mean_restore = 1000 * kv.restore_s / kv.restores if kv.restores else 0.0
    parts = (
        f"parked {kv.parks} times, {mean_park:.1f} ms each",
        f"restored {kv.restores}, {mean_restore:.1f} ms each",
        f"{kv.prefetches} ahead of time",
        f"{kv.evictions} evicted",
        f"disk: {kv.disk_writes} written, {kv.disk_reads} read",
        f"context rebuilt {kv.rebuilds}, compacted {kv.compactions} times",
    )
    shared = f"prefixes shared: {size(kv.shared_bytes)} not stored twice"
    notes = [(shared, palette.kv if kv.shared_bytes else palette.dim)]
    if bad := kv.restore_failures + kv.disk_failures:
        notes.append((f"{bad} states were lost and recomputed", palette.bad))
    return [*wrapped([(part, "") for part in parts], width), *(joined([note], width) for note in notes)]
