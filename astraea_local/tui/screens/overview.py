"""The first screen: everything at a glance."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import Input

from astraea_local.frame import Event, EventLevel, JobRow, SegmentRow, SlotRow, StateFrame
from astraea_local.tui.keys import binding
from astraea_local.tui.panels.filter import Filter
from astraea_local.tui.panels.lines import Lines
from astraea_local.tui.panels.table import Table
from astraea_local.tui.render.advice import advice_lines
from astraea_local.tui.render.completion import charts
from astraea_local.tui.render.kv_map import figures
from astraea_local.tui.render.memory import memory
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.rows import AGENTS, EVENTS, QUEUED, SLOTS
from astraea_local.tui.render.table import sort_mark
from astraea_local.tui.screens.base import FrameScreen
from astraea_local.tui.view import View

PANELS = ("memory", "speed", "slots", "queues", "agents", "events", "advisor")
LEVELS: tuple[EventLevel, ...] = ("debug", "info", "warning", "error")
_SMALL = ("memory", "slots", "agents")
_STATES = ("decode", "prefill", "preempted", "queued", "waiting", "done")
_RANKS: dict[str, int] = {state: rank for rank, state in enumerate(_STATES)}
_SORTS = ("state", *(column.sort for column in AGENTS if column.sort and column.sort != "state"))
_MOST_SLOT_LINES = 14


class Overview(FrameScreen):
    """Memory, speed, slots, queues, agents, events and advice."""

    BINDINGS: ClassVar[list[BindingType]] = [
        binding("open"),
        binding("filter"),
        binding("sort"),
        binding("reverse"),
        binding("level"),
        *(binding(f"panel_{number}", f"panel({number})") for number in range(1, len(PANELS) + 1)),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._chosen: dict[str, bool] = {}
        self._filters = {"agents": "", "events": ""}
        self._filtered = "agents"
        self._sort = "state"
        self._reverse = False
        self._level: EventLevel = "info"
        self._events: tuple[int, EventLevel, str, list[Event]] | None = None
        self._has_advice = False

    def body(self) -> ComposeResult:
        """Three rows of two panels around the agents."""
        with Horizontal(id="top"):
            yield Lines(id="memory", title="1 memory")
            yield Lines(id="speed", title="2 speed and completion")
        with Horizontal(id="middle"):
            yield Table[SlotRow](SLOTS, id="slots", title="3 slots", key=lambda row: row.slot)
            yield Table[SegmentRow](QUEUED, id="queues", title="4 queues", key=lambda row: row.segment)
        yield Table[JobRow](AGENTS, id="agents", title="5 agents", key=lambda row: row.job)
        with Horizontal(id="bottom"):
            yield Table[Event](EVENTS, id="events", title="6 events", key=_event_key, follow=True)
            yield Lines(id="advisor", title="7 advisor")
        yield Filter("part of a name, state or tool; Enter keeps it, Esc ends it")

    def on_mount(self) -> None:
        """The agents have the cursor."""
        super().on_mount()
        self.query_one("#agents").focus()

    @property
    def job(self) -> str | None:
        """The job under the cursor of the panel that has the focus, else under that of the agents."""
        focused = self.focused
        table = focused if isinstance(focused, Table) and focused.id != "events" else self._table("agents")
        return getattr(table.current, "job", None)

    def draw(self, view: View) -> None:
        """Draws the panels that can be seen."""
        frame, palette = view.frame, view.palette
        assert frame is not None
        if bool(view.advice) != self._has_advice:
            self._has_advice = bool(view.advice)
            self.place_panels()
        if (panel := self._visible("memory")) is not None:
            panel.show(_memory_and_moves(frame, palette, *panel.room))
        if (panel := self._visible("speed")) is not None:
            panel.show(charts(frame, view.trail, palette, *panel.room))
        if (panel := self._visible("advisor")) is not None:
            panel.show(advice_lines(view.advice, palette, panel.room[0]))
        self._draw_tables(frame, view)

    def _draw_tables(self, frame: StateFrame, view: View) -> None:
        if self._visible("slots") is not None:
            self._table("slots").show_rows(frame.slots, view.palette)
            self._fit_slots(len(frame.slots))
        if (panel := self._visible("queues")) is not None:
            self._table("queues").show_rows(frame.queue, view.palette)
            panel.retitle(_queues_title(frame))
        if (panel := self._visible("agents")) is not None:
            rows = self._sorted(frame.jobs)
            self._table("agents").show_rows(rows, view.palette)
            order = sort_mark(AGENTS, self._sort, ascending=self._reverse)
            named = f" matching {self._filters['agents']!r}" if self._filters["agents"] else ""
            panel.retitle(f"5 agents {len(rows)}{named} {order}")
        if (panel := self._visible("events")) is not None:
            self._table("events").show_rows(self._chosen_events(view), view.palette)
            named = f" matching {self._filters['events']!r}" if self._filters["events"] else ""
            panel.retitle(f"6 events from {self._level}{named}")

    def _sorted(self, jobs: list[JobRow]) -> list[JobRow]:
        wanted = self._filters["agents"].lower()
        found = [job for job in jobs if not wanted or _matches(job, wanted)]
        if self._sort == "state":
            return sorted(found, key=lambda job: _RANKS[job.state], reverse=self._reverse)
        text = self._sort in ("job", "tool")
        # Names from A, figures from the largest.
        return sorted(found, key=lambda job: getattr(job, self._sort), reverse=self._reverse == text)

    def _chosen_events(self, view: View) -> list[Event]:
        trail, wanted = view.trail, self._filters["events"].lower()
        if self._events is None or self._events[:3] != (trail.logged, self._level, wanted):
            levels = LEVELS[LEVELS.index(self._level) :]
            found = [e for e in trail.log if e.level in levels and (not wanted or wanted in e.text.lower())]
            self._events = trail.logged, self._level, wanted, found
        return self._events[3]

    def place_panels(self) -> None:
        """Shows the panels that the size has room for, or that were asked for."""
        visible = {name: self._is_on(name) for name in PANELS}
        for name, on in visible.items():
            self.query_one(f"#{name}").display = on
        for row, names in (("top", PANELS[:2]), ("middle", PANELS[2:4]), ("bottom", PANELS[5:])):
            self.query_one(f"#{row}").display = any(visible[name] for name in names)

    def _is_on(self, name: str) -> bool:
        by_default = name in _SMALL if self.size_class == "-small" else True
        return self._chosen.get(name, by_default) and (name != "advisor" or self._has_advice)

    def _fit_slots(self, slots: int) -> None:
        lines = min(slots, _MOST_SLOT_LINES if self.size_class == "-large" else 8)
        height = lines + (2 if self.size_class == "-small" else 3)
        middle = self.query_one("#middle")
        if self._visible("queues") is not None:
            height = max(height, 8)
        if middle.styles.height is None or middle.styles.height.value != height:
            middle.styles.height = height

    def action_panel(self, number: int) -> None:
        """Shows or hides a panel."""
        name = PANELS[number - 1]
        if name == "advisor" and not self._has_advice:
            self.notify("there is no advice at the moment")
            return
        self._chosen[name] = not self._is_on(name)
        self.place_panels()
        self.call_after_refresh(self.redraw)

    def action_open(self) -> None:
        """Opens the job under the cursor."""
        if self.job is not None:
            self.ui.open_job(self.job)

    def on_table_chosen(self) -> None:
        """A double click does as Enter does."""
        self.action_open()

    def on_table_headed(self, event: Table.Headed) -> None:
        """Sorts by the column that was clicked, the other way round if it is already."""
        if event.table.id == "agents" and event.column.sort:
            self._reverse = not self._reverse if self._sort == event.column.sort else False
            self._sort = event.column.sort
            self.redraw()

    def action_sort(self) -> None:
        """Sorts the agents by the next of the columns."""
        self._sort = _SORTS[(_SORTS.index(self._sort) + 1) % len(_SORTS)]
        self.redraw()

    def action_reverse(self) -> None:
        """Turns the order of the agents round."""
        self._reverse = not self._reverse
        self.redraw()

    def action_level(self) -> None:
        """Goes on to the next least level of the log."""
        self._level = LEVELS[(LEVELS.index(self._level) + 1) % len(LEVELS)]
        self.redraw()

    def action_filter(self) -> None:
        """Opens the line in which to type what to look for, in the log if that has the focus."""
        field = self.query_one("#filter", Input)
        self._filtered = "events" if self.focused is self._table("events") else "agents"
        field.value = self._filters[self._filtered]
        field.display = True
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters while it is typed."""
        self._filters[self._filtered] = event.value
        self.redraw()

    def on_input_submitted(self) -> None:
        """Keeps the filter and goes back to the table."""
        self.query_one("#filter", Input).display = False
        self._table(self._filtered).focus()

    def action_back(self) -> None:
        """Ends what is open: a maximized panel, the filter."""
        if self.maximized is not None:
            self.minimize()
            return
        field = self.query_one("#filter", Input)
        self._filters[self._filtered] = ""
        if field.display:
            field.display = False
            self._table(self._filtered).focus()
        self.redraw()

    def _table(self, name: str) -> "Table[JobRow | SlotRow | SegmentRow | Event]":
        return self.query_one(f"#{name}", Table)

    def _visible(self, name: str) -> Lines | None:
        panel = self.query_one(f"#{name}", Lines)
        return panel if panel.display else None


def _event_key(event: Event) -> object:
    return event.id, event.at, event.text


def _matches(job: JobRow, wanted: str) -> bool:
    return any(wanted in text.lower() for text in (job.job, job.state, job.tool, job.kv, job.parent or ""))


def _queues_title(frame: StateFrame) -> str:
    levels: dict[int, int] = {}
    for row in frame.queue:
        levels[row.queue] = levels.get(row.queue, 0) + 1
    return "  ".join(["4 queues", *(f"Q{level}:{levels[level]}" for level in sorted(levels))])


def _memory_and_moves(frame: StateFrame, palette: Palette, width: int, height: int) -> list[Text]:
    lines, moves = memory(frame, palette, width, height), figures(frame, palette, width)
    return [*lines, Text("", end=""), *moves] if len(lines) + 1 + len(moves) <= height else lines
