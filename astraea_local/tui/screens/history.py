"""Jobs that have ended, from the server's history."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, get_args

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input
from textual.worker import Worker

from astraea_local.past_jobs import PastJob, Query, SortKey, as_csv
from astraea_local.tui.actions import ActionError
from astraea_local.tui.keys import binding
from astraea_local.tui.panels.filter import Filter
from astraea_local.tui.panels.table import Table
from astraea_local.tui.render.rows import FINISHED
from astraea_local.tui.render.table import sort_mark
from astraea_local.tui.screens.base import FrameScreen
from astraea_local.tui.view import View

_SHOWN = 500
_ASK_EVERY_S = 5.0
_PAGE = 10_000
_SORTS = ("ended", *(column.sort for column in FINISHED if column.sort))


class History(FrameScreen):
    """A table of finished jobs; sorted by the server, exported whole."""

    BINDINGS: ClassVar[list[BindingType]] = [
        binding("sort"),
        binding("reverse"),
        binding("filter"),
        binding("export_csv", "export('csv')"),
        binding("export_json", "export('json')"),
    ]

    def __init__(self, folder: Callable[[], Path] = Path.cwd) -> None:
        """`folder` is where exports go."""
        super().__init__()
        self._folder = folder
        self._query = Query(limit=_SHOWN)
        self._jobs: list[PastJob] = []
        self._asked: Worker[None] | None = None

    def body(self) -> ComposeResult:
        """The table, and the line of its filter."""
        yield Table[PastJob](FINISHED, id="finished", title="history", key=lambda row: (row.job, row.started))
        yield Filter("part of a name; Enter keeps it")

    def on_mount(self) -> None:
        """Asks the server, and again now and then."""
        super().on_mount()
        self.query_one("#finished").focus()
        self.set_interval(_ASK_EVERY_S, self._ask)
        self._ask()

    def _ask(self) -> None:
        if self._asked is None or self._asked.is_finished:
            self._asked = self.run_worker(self._fetch(), exit_on_error=False)

    async def _fetch(self) -> None:
        table = self.query_one("#finished", Table)
        try:
            page = await self.ui.control.history(self._query)
        except ActionError as error:
            table.retitle(f"history: {error}")
            return
        self._jobs = page.jobs
        order = sort_mark(FINISHED, self._query.sort, ascending=self._query.order == "asc")
        named = f" matching {self._query.job!r}" if self._query.job else ""
        table.retitle(f"history {len(page.jobs)} of {page.total}{named} {order}")
        table.show_rows(self._jobs, self.ui.view.palette)

    def draw(self, view: View) -> None:
        """The same rows, in the colours of the present theme."""
        self.query_one("#finished", Table).show_rows(self._jobs, view.palette)

    def _change(self, **changes: object) -> None:
        self._query = Query.model_validate(self._query.model_dump() | changes)
        if self._asked is not None:
            # Its answer would be shown as that of the new question.
            self._asked.cancel()
            self._asked = None
        self._ask()

    def action_sort(self) -> None:
        """Sorts by the next of the columns."""
        self._change(sort=_SORTS[(_SORTS.index(self._query.sort) + 1) % len(_SORTS)])

    def action_reverse(self) -> None:
        """Turns the order round."""
        self._change(order="asc" if self._query.order == "desc" else "desc")

    def on_table_headed(self, event: Table.Headed) -> None:
        """Sorts by the column that was clicked, the other way round if it is already."""
        if event.column.sort == self._query.sort:
            self.action_reverse()
        elif event.column.sort in get_args(SortKey):
            self._change(sort=event.column.sort, order="desc")

    def action_filter(self) -> None:
        """Opens the line in which to type a part of a name."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Asks for those jobs only."""
        event.input.display = False
        self.query_one("#finished").focus()
        self._change(job=event.value)

    def action_back(self) -> None:
        """Leaves the filter first."""
        field = self.query_one("#filter", Input)
        if field.display:
            field.display = False
            self.query_one("#finished").focus()
        else:
            super().action_back()

    def action_export(self, form: Literal["csv", "json"]) -> None:
        """Writes all jobs that match into a new file of the current folder."""
        self.run_worker(self._export(form), exit_on_error=False)

    async def _export(self, form: str) -> None:
        jobs: list[PastJob] = []
        query = self._query.model_copy(update={"limit": _PAGE, "offset": 0})
        try:
            while True:
                page = await self.ui.control.history(query)
                jobs += page.jobs
                query = query.model_copy(update={"offset": len(jobs)})
                if not page.jobs or len(jobs) >= page.total:
                    break
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.ui.clock()))
            file = self._folder() / f"astraea-history-{stamp}.{form}"
            # In a thread: years of jobs, or a slow disk, must not stop the screen.
            await asyncio.to_thread(_write, file, jobs, form)
        except (ActionError, OSError) as error:
            self.notify(str(error), severity="error", title="not exported", markup=False)
            return
        self.notify(f"{len(jobs)} jobs in {file}", markup=False)


def _write(file: Path, jobs: list[PastJob], form: str) -> None:
    text = as_csv(jobs) if form == "csv" else json.dumps([job.model_dump() for job in jobs], indent=1)
    with file.open("x", encoding="utf-8", newline="") as out:
        out.write(text)
