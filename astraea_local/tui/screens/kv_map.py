"""Whose KV is where."""

from textual.app import ComposeResult

from astraea_local.frame import JobRow
from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.panels.table import Table
from astraea_local.tui.render.kv_map import cells, figures
from astraea_local.tui.render.memory import memory
from astraea_local.tui.render.rows import KV_STATES
from astraea_local.tui.screens.base import FrameScreen
from astraea_local.tui.view import View

_TIERS = ("slot", "ram", "disk", "none")


class KvMap(FrameScreen):
    """The cells by slot, the memories, and every state there is."""

    def body(self) -> ComposeResult:
        """Memory, cells, states."""
        yield Lines(id="memory", title="memory")
        yield Lines(id="cells", title="cells of the context")
        yield Table[JobRow](KV_STATES, id="states", title="states", key=lambda row: row.job)
        yield Lines(id="figures", title="moves")

    def on_mount(self) -> None:
        """The states have the cursor."""
        super().on_mount()
        self.query_one("#states").focus()

    @property
    def job(self) -> str | None:
        """The job under the cursor."""
        return getattr(self.query_one("#states", Table).current, "job", None)

    def draw(self, view: View) -> None:
        """Draws all of it."""
        frame, palette = view.frame, view.palette
        assert frame is not None
        panel = self.query_one("#memory", Lines)
        panel.show(memory(frame, palette, *panel.room))
        panel = self.query_one("#cells", Lines)
        panel.show(cells(frame, palette, panel.room[0]))
        held = [job for job in frame.jobs if job.kv != "none"]
        held.sort(key=lambda job: (_TIERS.index(job.kv), -job.kv_tokens))
        states = self.query_one("#states", Table)
        states.show_rows(held, palette)
        states.retitle("states  " + "  ".join(f"{t}: {sum(j.kv == t for j in held)}" for t in _TIERS[:3]))
        panel = self.query_one("#figures", Lines)
        panel.show(figures(frame, palette, panel.room[0]))

    def action_open(self) -> None:
        """Opens the job under the cursor."""
        if self.job is not None:
            self.ui.open_job(self.job)

    def on_table_chosen(self) -> None:
        """A double click does as Enter does."""
        self.action_open()
