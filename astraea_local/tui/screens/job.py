"""One job: its timeline, its calls with predictions beside the truth, and its family."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType

from astraea_local.frame import JobRow
from astraea_local.job_detail import JobDetail, SegmentDetail, Span
from astraea_local.tui.actions import ActionError
from astraea_local.tui.keys import binding
from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.panels.table import Table
from astraea_local.tui.render.gantt import SEGMENTS, gantt, tree
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.rows import kv_cell, move_cell, since_cell
from astraea_local.tui.render.units import calls, clean, count, percent, seconds
from astraea_local.tui.screens.base import FrameScreen
from astraea_local.tui.view import View

WINDOWS: tuple[float | None, ...] = (None, 600.0, 120.0, 30.0)
"""Lengths of the timeline, seconds; None = the whole life."""
_ASK_EVERY_S = 1.0


class JobScreen(FrameScreen):
    """The life of one job."""

    BINDINGS: ClassVar[list[BindingType]] = [binding("window")]

    def __init__(self, job: str) -> None:
        super().__init__()
        self._job = job
        self._detail: JobDetail | None = None
        self._missing = ""
        self._window: float | None = None
        self._last: JobRow | None = None
        self._asking = False

    @property
    def job(self) -> str | None:
        """The job that is shown."""
        return self._job

    def body(self) -> ComposeResult:
        """Facts, timeline, calls, family."""
        yield Lines(id="facts", title=clean(self._job))
        yield Lines(id="timeline", title="timeline")
        yield Table[SegmentDetail](
            SEGMENTS, id="calls", title="calls", key=lambda row: row.segment, follow=True
        )
        yield Lines(id="family", title="sub-agents")

    def on_mount(self) -> None:
        """Asks the server now and then on a timer."""
        super().on_mount()
        self.query_one("#calls").focus()
        self.set_interval(_ASK_EVERY_S, self._ask)
        self._ask()

    def _ask(self) -> None:
        if not self._asking:
            self._asking = True
            self.run_worker(self._fetch(), exit_on_error=False)

    async def _fetch(self) -> None:
        try:
            self._detail = await self.ui.control.detail(self._job)
            self._missing = ""
        except ActionError as error:
            self._missing = str(error)
        finally:
            self._asking = False
        self.redraw()

    def draw(self, view: View) -> None:
        """Draws what the frames say at once, and what the server said last."""
        frame, palette = view.frame, view.palette
        assert frame is not None
        row = view.job(self._job)
        self._last = row or self._last
        facts = self.query_one("#facts", Lines)
        facts.show(self._wrapped(_facts(row, self._last, self._missing, palette), facts.room[0]))
        spans = self._detail.spans if self._detail is not None else view.trail.spans(self._job)
        timeline = self.query_one("#timeline", Lines)
        length = self._window or _life(spans, frame.at)
        timeline.show(gantt(spans, frame.at, length, palette, timeline.room[0]))
        source = "" if self._detail is not None else " as the frames showed it"
        timeline.retitle(f"timeline of {seconds(length)}{source}")
        if self._detail is None:
            return
        table = self.query_one("#calls", Table)
        table.show_rows(self._detail.segments, palette)
        gone = f", {self._detail.forgotten} earlier ones no longer kept" if self._detail.forgotten else ""
        table.retitle(f"calls {len(self._detail.segments)}{gone}")
        family = self.query_one("#family", Lines)
        lines = tree(frame.jobs, self._detail, palette)
        family.display = bool(lines)
        family.show(lines)

    def _wrapped(self, lines: list[Text], width: int) -> list[Text]:
        pieces = [piece for line in lines for piece in line.wrap(self.app.console, width, no_wrap=False)]
        for piece in pieces:
            piece.end = ""
        return pieces

    def action_window(self) -> None:
        """Goes on to the next length of the timeline."""
        self._window = WINDOWS[(WINDOWS.index(self._window) + 1) % len(WINDOWS)]
        self.redraw()


def _life(spans: list[Span], now: float) -> float:
    return max(1.0, now - min((span.start for span in spans), default=now))


def _facts(row: JobRow | None, last: JobRow | None, missing: str, palette: Palette) -> list[Text]:
    lines = []
    shown = row or last
    if shown is None:
        lines.append(Text("this job is not there, or no longer", style=palette.warn, end=""))
    else:
        state = shown.state if row is not None else f"ended; it was {shown.state}"
        first = Text(state, style=palette.of_state(shown.state), no_wrap=True, end="")
        first.append(f" for {seconds(shown.since_s)}", palette.text)
        first.append(
            f"  Q{shown.queue}  priority {shown.priority:+d}  age {seconds(shown.created_s)}", palette.text
        )
        first.append("  KV ", palette.dim).append(*kv_cell(shown, palette))
        lines.append(first)
        lines += _more(shown, palette)
    if missing:
        lines.append(Text(clean(missing), style=palette.warn, no_wrap=True, end=""))
    return lines


def _more(row: JobRow, palette: Palette) -> list[Text]:
    share = percent(row.cached_tokens / row.prompt_tokens) if row.prompt_tokens else "-"
    work = f"{count(row.tokens)} tokens of context, {count(row.prompt_tokens)} of prompts ({share} cached), "
    work += f"{count(row.output_tokens)} of output in {calls(row.segments)}"
    times = f"queued {seconds(row.waited_s)}, in tools {seconds(row.tool_s)}"
    if row.bound != "-":
        times += f", bound by {row.bound}"
    lines = [Text(work, no_wrap=True, end=""), Text(times, no_wrap=True, end="")]
    if row.state == "waiting":
        wait, style = since_cell(row, palette)
        lines[-1].append(f"; waits for {clean(row.tool) or 'its client'}: {wait}", style or palette.waiting)
    if row.next_move:
        move, _style = move_cell(row, palette)
        when = "next:" if row.next_move_s is None else "next"
        lines.append(Text(f"{when} {clean(move)}", style=palette.accent, no_wrap=True, end=""))
    if row.reason:
        lines.append(Text(clean(row.reason), style=palette.dim, no_wrap=True, end=""))
    if row.prefix_note:
        lines.append(Text(clean(row.prefix_note), style=palette.warn, no_wrap=True, end=""))
    if row.parent:
        lines[0].append(f"; started by {clean(row.parent)}", palette.dim)
    return lines
