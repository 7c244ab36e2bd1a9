"""The terminal UI: shows the frames of a source, and asks its other side to act."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.screen import Screen
from textual.theme import Theme

from astraea_local.frame import StateFrame
from astraea_local.tui import themes
from astraea_local.tui.actions import PRIORITIES, Action, ActionError, Control, JobVerb
from astraea_local.tui.advisor import advise
from astraea_local.tui.keys import KEYS, KeysError, KeysFile, binding, in_force, readable
from astraea_local.tui.pace import LEAST_INTERVAL_S, MOST_INTERVAL_S
from astraea_local.tui.render.units import clean
from astraea_local.tui.screens.base import FrameScreen
from astraea_local.tui.screens.confirm import Confirm, Leave, Pick, Resize
from astraea_local.tui.screens.help import Help
from astraea_local.tui.screens.history import History
from astraea_local.tui.screens.job import JobScreen
from astraea_local.tui.screens.kv_map import KvMap
from astraea_local.tui.screens.overview import Overview
from astraea_local.tui.source import Link, Source
from astraea_local.tui.view import View

_INTERVALS = (LEAST_INTERVAL_S, 0.25, 0.5, 1.0, 2.0, 5.0, MOST_INTERVAL_S)
_LATE_S = 2.0
_LOG_EVERY_S = 0.3
_NOT_LISTED = ("quit", "palette", "back", "open")
"""What the palette leaves out: Textual has its own line for the first, the others make no sense there."""


class Host(Protocol):
    """The server that this UI was started with, if any."""

    def lines(self) -> list[str]:
        """What it has logged since the last call."""
        ...

    def ended(self) -> str | None:
        """Its last words when it has ended by itself."""
        ...


class AstraeaApp(App[str]):
    """Returns what becomes of the server it was started with: `stop`, `leave`, or `ended` by itself."""

    CSS_PATH = "astraea.tcss"
    TITLE = "astraea-local"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [
        binding("help"),
        binding("hold"),
        binding("history"),
        binding("kv_map"),
        binding("maximize"),
        binding("palette", "command_palette"),
        binding("slower", "interval(1)"),
        binding("faster", "interval(-1)"),
        binding("pin"),
        *(binding(verb, f"ask('{verb}')") for verb in ("park", "drop", "cancel")),
        binding("raise", "prioritize(1)"),
        binding("lower", "prioritize(-1)"),
        binding("policy"),
        binding("scheduler"),
        binding("resize"),
        binding("server"),
        binding("play"),
        binding("step_on", "step(1)"),
        binding("step_back", "step(-1)"),
        binding("speed_up", "speed(1)"),
        binding("slow_down", "speed(-1)"),
        binding("quit"),
    ]

    def __init__(
        self,
        source: Source,
        control: Control,
        *,
        keys: KeysFile | None = None,
        keys_path: Path = Path("keys.toml"),
        host: Host | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`host`: the server that was started with this UI. `clock`: Unix time.

        Raises `KeysError` for a theme that there is not.
        """
        super().__init__()
        self.register_theme(themes.ASTRAEA)
        self.view = View()
        self.control = control
        self.clock = clock
        self.keys = keys.keys if keys is not None else {}
        self.keys_path = keys_path
        self._source = source
        self._host = host
        self._wanted_theme = (keys.theme if keys is not None else None) or themes.DEFAULT
        if self._wanted_theme not in self.available_themes:
            known = ", ".join(sorted(self.available_themes))
            raise KeysError(f"{keys_path}: theme: no theme {self._wanted_theme!r}: choose one of {known}")
        self._held: StateFrame | None = None
        self._came_at = 0.0
        self._runs_in: asyncio.AbstractEventLoop | None = None

    def on_mount(self) -> None:
        """Begins to watch."""
        self.theme = self._wanted_theme
        self.set_keymap(self.keys)
        self.theme_changed_signal.subscribe(self, self._repaint)
        self._repaint(self.current_theme)
        self.push_screen(Overview())
        self.run_worker(self._watch(), exit_on_error=True)
        self.set_interval(1.0, self._check_age)
        self._runs_in = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A closed terminal, or `kill`: the screen is put in order, and the server stopped.
            self._runs_in.add_signal_handler(number, self.exit, "stop")
        if self._host is not None:
            self.set_interval(_LOG_EVERY_S, self._read_host)

    async def _watch(self) -> None:
        async for update in self._source.updates():
            if isinstance(update, Link):
                self.view.link = update
            else:
                self.take(update)
            self.redraw()

    def take(self, frame: StateFrame) -> None:
        """Makes it the frame that is shown, unless another one is held; `redraw` draws it."""
        self._came_at = self.clock()
        self.view.late_s = 0.0
        if self.view.held:
            self._held = frame
            return
        if self.view.frame is None or frame.at >= self.view.frame.at:
            self.view.trail.add(frame)
        self.view.frame = frame
        self.view.advice = advise(frame)

    def redraw(self) -> None:
        """Draws the topmost screen that shows frames."""
        for screen in reversed(self.screen_stack):
            if isinstance(screen, FrameScreen):
                screen.redraw()
                return

    def _check_age(self) -> None:
        late = self.clock() - self._came_at
        lost = (
            self.view.link.state in ("lost", "connecting", "loading")
            or late > _LATE_S + self._source.interval
        )
        waits_for_time = self._source.transport is None and self.view.frame is not None
        was = self.view.late_s
        self.view.late_s = late if waits_for_time and lost and not self.view.held else 0.0
        if self.view.late_s or was:
            self.redraw()

    def _read_host(self) -> None:
        assert self._host is not None
        for line in self._host.lines():
            level = "warning" if " WARNING " in line or line.startswith("warning") else "info"
            level = "error" if " ERROR " in line or " CRITICAL " in line else level
            self.view.trail.note(self.clock(), level, line)
        words = self._host.ended()
        if words is not None:
            self.exit("ended")

    def _repaint(self, theme: Theme) -> None:
        self.view.palette = themes.palette(self.theme_variables, ansi=theme.ansi)
        self.redraw()

    # -- actions on the server ---------------------------------------------------------------------------

    def request(self, action: Action) -> None:
        """Asks where it hurts, then asks the server; what came of it is told and logged."""
        if self.control.refusal:
            self._tell(action, self.control.refusal, failed=True)
        elif action.question:

            def go(yes: bool | None) -> None:
                if yes:
                    self.run_worker(self._perform(action), exit_on_error=False)

            self.push_screen(Confirm(action.question), go)
        else:
            self.run_worker(self._perform(action), exit_on_error=False)

    async def _perform(self, action: Action) -> None:
        try:
            done = await self.control.act(action)
        except ActionError as error:
            self._tell(action, str(error), failed=True)
        else:
            self._tell(action, done, failed=False)

    def _tell(self, action: Action, text: str, *, failed: bool) -> None:
        # The server begins with the job's name, which the title has already.
        text = clean(text.removeprefix(f"{action.job}: "))
        self.notify(text, title=action.text, severity="warning" if failed else "information", markup=False)
        if failed:
            # What was done is in the server's own log.
            self.view.trail.note(self.clock(), "warning", f"not done: {action.text}: {text}")
            self.redraw()

    def action_ask(self, verb: JobVerb) -> None:
        """Something about the job under the cursor."""
        if (job := self._job()) is not None:
            self.request(Action(verb, job))

    def action_pin(self) -> None:
        """Pins the job under the cursor, or ends that."""
        if (job := self._job()) is not None:
            row = self.view.job(job)
            self.request(Action("unpin" if row is not None and row.pinned else "pin", job))

    def action_prioritize(self, by: int) -> None:
        """Raises or lowers the priority of the job under the cursor."""
        job = self._job()
        row = self.view.job(job)
        if row is not None:
            low, high = PRIORITIES
            self.request(Action("priority", row.job, {"priority": max(low, min(high, row.priority + by))}))

    def action_scheduler(self) -> None:
        """Pauses the scheduler, or resumes it."""
        paused = self.view.frame is not None and self.view.frame.scheduling_paused
        self.request(Action("resume scheduling" if paused else "pause scheduling"))

    def action_server(self) -> None:
        """Gives the GPU's memory back, or takes it again."""
        paused = self.view.frame is not None and self.view.frame.status == "paused"
        self.request(Action("resume server" if paused else "pause server"))

    def action_policy(self) -> None:
        """Offers the policies."""
        # Not twice when the key is pressed again before a slow server has answered.
        self.run_worker(self._offer_policies(), group="policies", exclusive=True, exit_on_error=False)

    async def _offer_policies(self) -> None:
        try:
            known = await self.control.policies()
        except ActionError as error:
            self._tell(Action("policy"), str(error), failed=True)
            return
        width = max((len(name) for name, _ in known), default=0)
        options = [(name, f"{name:<{width}}  {summary}") for name, summary in known]
        current = None if self.view.frame is None else self.view.frame.server.policy

        def go(name: str | None) -> None:
            if name is not None and name != current:
                self.request(Action("policy", None, {"policy": name}))

        self.push_screen(Pick("Which segment runs next?", options, current), go)

    def action_resize(self) -> None:
        """Asks for the context's new size."""
        if self.view.frame is None:
            return

        def go(answer: tuple[int, int] | None) -> None:
            if answer is not None:
                self.request(Action("resize", None, {"size": answer[0], "slots": answer[1]}))

        server = self.view.frame.server
        self.push_screen(Resize(server.context, server.slots), go)

    def _job(self) -> str | None:
        screen = self.screen
        job = screen.job if isinstance(screen, FrameScreen) else None
        if job is None and isinstance(screen, FrameScreen):
            self.notify("no running or waiting job is under the cursor")
        return job

    # -- looking around ----------------------------------------------------------------------------------

    def open_job(self, job: str) -> None:
        """Opens its screen."""
        self.push_screen(JobScreen(job))

    def _open(self, screen: FrameScreen) -> None:
        if isinstance(self.screen, type(screen)):
            self.pop_screen()
        elif isinstance(self.screen, FrameScreen):
            # One leads back to the overview, however many were opened from one another.
            while not isinstance(self.screen, Overview):
                self.pop_screen()
            self.push_screen(screen)

    def action_help(self) -> None:
        """Opens the help over the present screen, or closes it."""
        if isinstance(self.screen, Help):
            self.pop_screen()
        elif isinstance(self.screen, FrameScreen):
            self.push_screen(Help())

    def action_history(self) -> None:
        """Opens the history, or closes it."""
        self._open(History())

    def action_kv_map(self) -> None:
        """Opens the KV map, or closes it."""
        self._open(KvMap())

    def action_maximize(self) -> None:
        """Gives the focused panel the whole screen, or ends that."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self.screen.focused is not None:
            self.screen.maximize(self.screen.focused)

    def action_hold(self) -> None:
        """Keeps the present frame on the screen, or goes on; a recording pauses."""
        if self._source.transport is not None:
            self._source.transport.toggle()
            return
        self.view.held = not self.view.held
        if not self.view.held and self._held is not None:
            frame, self._held = self._held, None
            self.take(frame)
        self.redraw()

    def action_interval(self, by: int) -> None:
        """The next slower or faster rhythm of frames."""
        nearest = min(range(len(_INTERVALS)), key=lambda i: abs(_INTERVALS[i] - self._source.interval))
        self._source.interval = _INTERVALS[max(0, min(len(_INTERVALS) - 1, nearest + by))]
        self.notify(f"a frame every {self._source.interval:g} s at most", timeout=2)

    def action_play(self) -> None:
        """Plays a recording, or pauses it."""
        if self._source.transport is not None:
            self._source.transport.toggle()

    def action_step(self, by: int) -> None:
        """Another frame of a recording."""
        if self._source.transport is not None:
            self._source.transport.step(by)

    def action_speed(self, by: int) -> None:
        """Plays a recording faster or slower."""
        if self._source.transport is not None:
            self._source.transport.faster(by)

    # -- leaving -----------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """As the hangup signal does, from any thread."""
        # It may end by itself just now.
        with contextlib.suppress(RuntimeError):
            if self._runs_in is not None:
                self._runs_in.call_soon_threadsafe(self.exit, "stop")

    async def action_quit(self) -> None:
        """Leaves; asks first what becomes of a server that was started with this UI."""
        if self._host is None:
            self.exit()
            return
        if isinstance(self.screen, Leave):
            # The impatient second Ctrl-C.
            self.exit("stop")
            return

        def go(answer: str | None) -> None:
            if answer in ("stop", "leave"):
                self.exit(answer)

        self.push_screen(Leave(), go)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything that has a key, and Textual's own."""
        yield from super().get_system_commands(screen)
        keys = in_force(self.keys)
        active = {found.binding.id: found for found in screen.active_bindings.values()}
        for name, key in KEYS.items():
            if name in active and name not in _NOT_LISTED:
                found = active[name]
                help_text = f"{key.group}: {readable(keys[name])}"
                yield SystemCommand(key.text, help_text, self._runner(found.binding.action, found.node))

    def _runner(self, action: str, node: Any) -> Callable[[], Any]:
        async def run() -> None:
            await self.run_action(action, node)

        return run


def yield_to_others() -> None:
    """A monitor must not cost what it watches: lets everything else on this machine go first."""
    try:
        os.nice(10)
    except OSError:
        return
