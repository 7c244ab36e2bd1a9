"""The two lines at the top: what is served, and how it is."""

from rich.text import Text

from astraea_local.frame import ServerInfo, StateFrame
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.parts import Part, joined
from astraea_local.tui.render.units import clean, count, percent, rate, seconds

_STATUS = {
    "ready": ("●", "ok"),
    "loading": ("◌", "warn"),
    "restarting": ("◌", "bad"),
    "failed": ("✗", "bad"),
    "stopping": ("◌", "warn"),
    "paused": ("‖", "warn"),
}


def header(frame: StateFrame, link: str, palette: Palette, width: int, *, stale: bool = False) -> list[Text]:
    """Two lines. `link` says how the frame came here; empty while it is the server's newest.

    `stale`: the server may be otherwise by now.
    """
    mark, role = _STATUS[frame.status]
    now = (f"{mark} {frame.status}", getattr(palette, role))
    state = [(f"○ it was {frame.status}", palette.dim) if stale else now]
    if frame.scheduling_paused:
        state.append(("scheduling paused", palette.warn))
    if frame.restarts:
        state.append((f"{frame.restarts} restarts", palette.bad))
    if link:
        state.append((clean(link), palette.warn))
    server = frame.server
    first = [("astraea-local", palette.title), *state, (f"up {seconds(frame.uptime_s)}", palette.dim)]
    first += [(f"policy {server.policy}", palette.accent)]
    if server.retention:
        first.append((f"retention {server.retention}", palette.dim))
    first += [(f"profile {clean(server.profile)}", palette.dim), (server.version, palette.dim)]
    return [joined(first, width), joined(_model(server, frame, palette), width)]


def waiting(link: str, palette: Palette, width: int) -> list[Text]:
    """The header before there is any frame."""
    return [
        joined([("astraea-local", palette.title), (clean(link), palette.warn)], width),
        Text("", end=""),
    ]


def summary(frame: StateFrame, palette: Palette, width: int) -> Text:
    """One line of counts: who waits for what, and what it brings."""
    states = [job.state for job in frame.jobs]
    running = sum(state in ("prefill", "decode") for state in states)
    totals = frame.totals
    parts = [
        (f"{len(states)} jobs", palette.text),
        (f"{running} running", palette.decode),
        (f"{len(frame.queue)} queued", palette.queued if frame.queue else palette.dim),
        (f"{states.count('waiting')} in tools", palette.waiting),
        (f"{rate(sum(slot.tokens_s for slot in frame.slots))} tok/s", palette.text),
    ]
    if totals.prompt_tokens:
        parts.append((f"{percent(totals.cached_tokens / totals.prompt_tokens)} cached", palette.accent))
    return joined(parts, width)


def _model(server: ServerInfo, frame: StateFrame, palette: Palette) -> list[Part]:
    parts = [(clean(server.model), palette.text)]
    if server.quant and server.quant not in server.model:
        parts.append((server.quant, palette.text))
    if server.parameters:
        parts.append((f"{count(server.parameters)} parameters", palette.dim))
    return [
        *parts,
        (f"{server.slots} slots", palette.text),
        (f"{server.context:,} cells {server.layout}", palette.text),
        (f"job ≤ {server.job_context:,}", palette.dim),
        (server.model_class, palette.dim),
        (f"GPU {clean(frame.memory.gpu)}" if frame.memory.gpu else "no GPU", palette.dim),
        (f"layers on it: {server.offloaded}", palette.dim),
    ]
