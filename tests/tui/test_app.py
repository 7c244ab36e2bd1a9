"""The app with frames that are given: what keys do, and what it survives."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input

from astraea_local.frame import Event, StateFrame
from astraea_local.past_jobs import Page, Query
from astraea_local.tui.actions import HttpControl, Refusing
from astraea_local.tui.app import AstraeaApp
from astraea_local.tui.connection import open_client
from astraea_local.tui.keys import KeysError, KeysFile
from astraea_local.tui.mock import MockControl, MockSource
from astraea_local.tui.panels.table import Table
from astraea_local.tui.record import Recorder, Recording
from astraea_local.tui.screens.confirm import Confirm, Pick, Resize
from astraea_local.tui.screens.help import Help
from astraea_local.tui.screens.history import History
from astraea_local.tui.screens.job import JobScreen
from astraea_local.tui.screens.kv_map import KvMap
from astraea_local.tui.screens.overview import Overview
from astraea_local.tui.source import HttpSource, ReplaySource
from tests.tui.driving import START, Given, Hosted, app, frames, text, until, world


@asynccontextmanager
async def running(ui: AstraeaApp, size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[str]]:
    async with ui.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(ui.screen, Overview))
        if isinstance(ui._source, Given):
            await until(pilot, ui._source.given.is_set)
            await pilot.pause()
        yield pilot


def agents(pilot: Pilot[str]) -> Table[object]:
    return pilot.app.screen.query_one("#agents", Table)


async def test_screens_open_and_close() -> None:
    made = world()
    ui = app(frames(made, 2), MockControl(made))
    async with running(ui) as pilot:
        for key, kind in (("h", History), ("v", KvMap), ("question_mark", Help), ("enter", JobScreen)):
            await pilot.press(key)
            assert isinstance(ui.screen, kind)
            await pilot.press("escape")
            assert isinstance(ui.screen, Overview)
        await pilot.press("h", "v")
        assert isinstance(ui.screen, KvMap)
        await pilot.press("v")
        assert isinstance(ui.screen, Overview)


async def test_help_leads_back_to_where_it_was_opened() -> None:
    ui = app(frames(world(), 1))
    async with running(ui) as pilot:
        await pilot.press("enter", "question_mark")
        assert isinstance(ui.screen, Help)
        await pilot.press("escape")
        assert isinstance(ui.screen, JobScreen)


async def test_one_key_leads_back_to_the_overview_from_screens_opened_from_one_another() -> None:
    ui = app(frames(world(), 1))
    async with running(ui) as pilot:
        await pilot.press("v", "enter", "h", "question_mark", "v")
        assert isinstance(ui.screen, KvMap)
        await pilot.press("escape")
        assert isinstance(ui.screen, Overview)


async def test_the_filter_finds_agents_by_name_state_and_tool() -> None:
    made = world(24)
    (frame,) = frames(made, 1)
    ui = app([frame])
    async with running(ui) as pilot:
        await pilot.press("slash")
        await until(pilot, lambda: "part of a name, state or tool" in text(pilot))
        await pilot.press(*"waiting")
        await until(pilot, lambda: any(line.strip() == "waiting" for line in text(pilot).splitlines()))
        await pilot.press("enter")
        wanted = {job.job for job in frame.jobs if job.state == "waiting"}
        assert {getattr(row, "job", "") for row in agents(pilot).rows} == wanted
        assert wanted
        assert "matching 'waiting'" in text(pilot)
        await pilot.press("escape")
        assert len(agents(pilot).rows) == len(frame.jobs)


async def test_agents_are_sorted_by_key_and_by_a_click_on_a_title() -> None:
    (frame,) = frames(world(24), 1)
    ui = app([frame])
    async with running(ui) as pilot:
        await pilot.press("s")
        names = [getattr(row, "job", "") for row in agents(pilot).rows]
        assert names == sorted(names)
        await pilot.press("r")
        assert [getattr(row, "job", "") for row in agents(pilot).rows] == names[::-1]
        line = next(line for line in text(pilot).splitlines() if "AGENT" in line and "STATE" in line)
        await pilot.click("#agents", offset=(line.index("TOKENS"), 1))
        tokens = [getattr(row, "tokens", 0) for row in agents(pilot).rows]
        assert tokens == sorted(tokens, reverse=True)
        assert "5 agents 24 ▼tokens" in text(pilot)
        await pilot.click("#agents", offset=(line.index("SINCE"), 1))
        assert "5 agents 24 ▼since" in text(pilot)


async def test_a_click_moves_the_cursor_and_a_double_click_opens() -> None:
    ui = app(frames(world(24), 1))
    async with running(ui) as pilot:
        await pilot.click("#agents", offset=(4, 4))
        chosen = getattr(agents(pilot).current, "job", None)
        assert chosen == getattr(agents(pilot).rows[2], "job", None)
        await pilot.click("#agents", offset=(4, 4), times=2)
        assert isinstance(ui.screen, JobScreen)
        assert ui.screen.job == chosen


async def test_the_cursor_stays_with_its_agent() -> None:
    first, second = frames(world(24), 2)
    reordered = second.model_copy(update={"jobs": second.jobs[::-1]})
    ui = app([first])
    async with running(ui) as pilot:
        await pilot.press("down", "down", "down")
        chosen = getattr(agents(pilot).current, "job", "")
        ui.take(reordered)
        ui.redraw()
        assert getattr(agents(pilot).current, "job", "") == chosen


async def test_panels_are_hidden_and_shown() -> None:
    ui = app(frames(world(), 1))
    async with running(ui) as pilot:
        assert "3 slots" in text(pilot)
        await pilot.press("3")
        await pilot.pause()
        assert "3 slots" not in text(pilot)
        await pilot.press("3")
        await pilot.pause()
        assert "3 slots" in text(pilot)


async def test_a_small_terminal_shows_less_until_it_is_asked_for() -> None:
    ui = app(frames(world(), 1))
    async with running(ui, (80, 24)) as pilot:
        assert "6 events" not in text(pilot)
        await pilot.press("6")
        await pilot.pause()
        assert "6 events" in text(pilot)


async def test_what_hurts_is_asked_first() -> None:
    made = world()
    ui = app(frames(made, 1), MockControl(made))
    async with running(ui) as pilot:
        job = getattr(agents(pilot).current, "job", "")
        await pilot.press("c")
        assert isinstance(ui.screen, Confirm)
        assert f"Cancel {job}?" in text(pilot)
        await pilot.press("enter")
        assert job in made.jobs
        await pilot.press("c", "y")
        await until(pilot, lambda: job not in made.jobs)


async def test_what_is_refused_is_told_and_logged() -> None:
    made = world()
    for ui, words in (
        (app(frames(made, 1), MockControl(made, readonly=True)), "read-only"),
        (app(frames(made, 1), Refusing()), "a recording cannot be changed"),
    ):
        async with running(ui) as pilot:
            await pilot.press("i")
            assert any(event.level == "warning" and words in event.text for event in ui.view.trail.log)
            assert words in text(pilot)


async def test_the_policy_and_the_size_are_asked_for() -> None:
    made = world()
    ui = app(frames(made, 1), MockControl(made))
    async with running(ui) as pilot:
        await pilot.press("o")
        await until(pilot, lambda: isinstance(ui.screen, Pick))
        await pilot.press("down", "enter")
        await until(pilot, lambda: made.policy == "fcfs")
        await pilot.press("z")
        await until(pilot, lambda: isinstance(ui.screen, Resize))
        assert ui.screen.query_one(".dialog").outer_size.height <= 14
        ui.screen.query_one("#slots", Input).value = "0"
        await pilot.press("enter")
        assert "slots: a number from 1 on" in text(pilot)
        ui.screen.query_one("#slots", Input).value = "3"
        await pilot.press("enter", "y")
        await until(pilot, lambda: made.slots == 3)


async def test_ctrl_c_in_a_dialog_asks_about_the_server_before_it_stops_it() -> None:
    made = world()
    ui = app(frames(made, 1), MockControl(made), host=Hosted())
    async with running(ui) as pilot:
        await pilot.press("o")
        await until(pilot, lambda: isinstance(ui.screen, Pick))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "Close the screen?" in text(pilot))
        assert ui.return_value is None
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert ui.return_value == "stop"


async def test_held_frames_stay_and_the_newest_comes_after() -> None:
    first, second = frames(world(), 2)
    ui = app([first])
    async with running(ui) as pilot:
        await pilot.press("p")
        ui.take(second)
        assert ui.view.frame is first
        assert "held" in text(pilot)
        await pilot.press("p")
        assert ui.view.frame is second


async def test_the_rhythm_changes() -> None:
    ui = app(frames(world(), 1))
    async with running(ui) as pilot:
        await pilot.press("minus")
        assert ui._source.interval == 0.5
        await pilot.press("plus", "plus")
        assert ui._source.interval == 0.1


async def test_a_recording_is_paused_and_stepped(tmp_path: Path) -> None:
    taken = frames(world(), 5)
    with Recorder(tmp_path / "r.jsonl") as recorder:
        for frame in taken:
            recorder.write(frame.model_dump_json().encode())
    with Recording(tmp_path / "r.jsonl") as recording:
        source = ReplaySource(recording)
        ui = AstraeaApp(source, Refusing())
        async with running(ui) as pilot:
            await until(pilot, lambda: ui.view.frame is not None)
            await pilot.press("space")
            assert source.transport is not None
            while source.transport.position:
                await pilot.press("left_square_bracket")
            await pilot.press("right_square_bracket", "right_square_bracket")
            await until(pilot, lambda: ui.view.frame is not None and ui.view.frame.at == taken[2].at)
            assert "recording 3/5" in text(pilot)


async def test_an_answer_to_an_older_question_is_not_shown() -> None:
    made = world(24, steps=420)

    class Slow(MockControl):
        """Takes its time over the whole history."""

        async def history(self, query: Query) -> Page:
            if not query.job:
                await asyncio.sleep(0.3)
            return await super().history(query)

    ui = app(frames(made, 1), Slow(made))
    wanted = made.finished[0].job
    async with running(ui) as pilot:
        await pilot.press("h", "slash", *wanted, "enter")
        table = ui.screen.query_one("#finished", Table)
        await until(pilot, lambda: bool(table.rows))
        await asyncio.sleep(0.4)
        await pilot.pause()
        assert {row.job for row in table.rows} == {job.job for job in made.finished if wanted in job.job}
        assert f"matching '{wanted}'" in text(pilot)


async def test_own_keys_are_used_and_shown() -> None:
    made = world()
    ui = app(frames(made, 1), MockControl(made), keys=KeysFile({"history": "y"}))
    async with running(ui) as pilot:
        await pilot.press("h")
        assert not isinstance(ui.screen, History)
        await pilot.press("y")
        await until(pilot, lambda: isinstance(ui.screen, History))


async def test_every_action_is_in_the_command_palette() -> None:
    ui = app(frames(world(), 1), keys=KeysFile({"park": "ctrl+k"}))
    async with running(ui):
        commands = {command.title: command.help for command in ui.get_system_commands(ui.screen)}
        assert {"Park KV now", "Policy", "History", "Resize the context", "Filter", "Slots panel"} <= set(
            commands
        )
        assert (commands["Park KV now"], commands["Raise priority"]) == ("actions: ctrl+k", "actions: >")


@pytest.mark.parametrize("theme", ["nord", "textual-light", "ansi-dark", "solarized-light"])
async def test_built_in_themes_colour_the_panels(theme: str) -> None:
    ui = app(frames(world(), 1))
    async with running(ui) as pilot:
        before = ui.view.palette
        ui.theme = theme
        await until(pilot, lambda: ui.view.palette != before)


def test_an_unknown_theme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        KeysError, match=r"keys\.toml: theme: no theme 'mauve': choose one of .*astraea.*nord"
    ):
        app([], keys=KeysFile(theme="mauve"))


async def test_a_terminal_that_is_too_small_says_so_and_how_large_it_should_be() -> None:
    made = world(24)
    ui = app(frames(made, 2), MockControl(made))
    async with running(ui, (50, 12)) as pilot:
        for key in ("", "v", "h", "enter"):
            await pilot.press(*key.split())
            await until(pilot, lambda: "50×12 is too small: make the terminal 60×16" in text(pilot))
            assert "agents" not in text(pilot)
        await pilot.resize_terminal(120, 40)
        await pilot.press("escape")
        await until(pilot, lambda: "5 agents" in text(pilot))
        assert "too small" not in text(pilot)


# -- what it survives ------------------------------------------------------------------------------------


async def test_a_resize_storm() -> None:
    made = world(60)
    ui = AstraeaApp(MockSource(made), MockControl(made))
    async with running(ui) as pilot:
        for index in range(60):
            await pilot.resize_terminal(20 + (index * 37) % 200, 5 + (index * 23) % 60)
        await pilot.resize_terminal(120, 40)
        await pilot.pause()
        assert "5 agents" in text(pilot)


async def test_pasted_text_does_nothing() -> None:
    made = world()
    ui = app(frames(made, 1), MockControl(made))
    async with running(ui) as pilot:
        ui.screen.post_message(events.Paste("qqccyydy\nx\n" * 1000))
        await pilot.pause()
        assert isinstance(ui.screen, Overview)
        await pilot.press("slash")
        ui.screen.query_one("#filter", Input).post_message(events.Paste("\x1b[31mevil\x1b[0m\n" * 50))
        await pilot.pause()
        assert "\x1b" not in text(pilot)


async def test_names_that_try_to_draw() -> None:
    (frame,) = frames(world(), 1)
    evil = frame.jobs[0].model_copy(
        update={"job": "\x1b[2J\x1b]0;evil\x07[bold]x[/]" * 20, "reason": "\r\n\x9b31m"}
    )
    ui = app([frame.model_copy(update={"jobs": [evil, *frame.jobs[1:]]})])
    async with running(ui, (200, 60)) as pilot:
        assert not any(c in text(pilot) for c in "\x1b\x07\x9b\r")
        assert "[bold]x[/]" in text(pilot)


async def test_a_job_says_why_its_prompt_had_to_be_computed_again() -> None:
    (frame,) = frames(world(), 1)
    note = "prefix lost at token 1,204 of 3,300: tools changed"
    ui = app([frame.model_copy(update={"jobs": [frame.jobs[0].model_copy(update={"prefix_note": note})]})])
    async with running(ui) as pilot:
        await pilot.press("enter")
        await until(pilot, lambda: note in text(pilot))


async def test_a_long_reason_is_shown_whole() -> None:
    (frame,) = frames(world(), 1)
    wordy = frame.jobs[0].model_copy(
        update={"next_move": "park to RAM, since " + "it waits " * 20 + "so long"}
    )
    ui = app([frame.model_copy(update={"jobs": [wordy]})])
    async with running(ui) as pilot:
        await pilot.press("enter")
        await until(pilot, lambda: "so long" in text(pilot))


async def test_names_that_look_like_markup() -> None:
    (frame,) = frames(world(), 1)
    evil = frame.jobs[0].model_copy(update={"job": "[/red]x", "state": "decode"})
    ui = app([frame.model_copy(update={"jobs": [evil]})])
    async with running(ui) as pilot:
        await pilot.press("slash", *"[/red]", "enter")
        assert "matching '[/red]'" in text(pilot)
        await pilot.press("enter")
        assert "[/red]x" in text(pilot)


async def test_a_log_of_ten_thousand_lines() -> None:
    (frame,) = frames(world(), 1)
    ui = app([frame])
    async with running(ui) as pilot:
        for start in range(0, 10_000, 200):
            events_ = [
                Event(id=i + 1, at=START + i, level="info", text=f"line {i}")
                for i in range(start, start + 200)
            ]
            ui.take(frame.model_copy(update={"at": frame.at + start + 1, "events": events_}))
        ui.redraw()
        await pilot.pause()
        assert "line 9999" in text(pilot)
        ui.screen.query_one("#events").focus()
        await pilot.press("home", "slash", *"line 77", "enter")
        assert "line 77" in text(pilot)


async def _serve(answer: str) -> AsyncGenerator[str, None]:
    """A server that says the same to everybody; `silence` says nothing at all."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            if answer == "silence":
                await asyncio.sleep(3600)
            if b"/health" in request:
                writer.write(b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"status":"ok"}')
            else:
                head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
                writer.write(head + f"event: frame\ndata: {answer}\n\n".encode())
            await writer.drain()
            if b"/health" not in request:
                await asyncio.sleep(0.4)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("answer", ["silence", json.dumps({"frame_version": 99}), "not JSON", "[]"])
async def test_a_server_that_is_slow_dead_or_strange_freezes_nothing(answer: str) -> None:
    serving = _serve(answer)
    url = await anext(serving)
    async with open_client(url, None) as client:
        client.timeout = httpx.Timeout(0.5)
        ui = AstraeaApp(HttpSource(url, client), HttpControl(client))
        async with running(ui) as pilot:
            await until(pilot, lambda: ui.view.link.state == "lost")
            if "99" in answer:
                await until(pilot, lambda: "frame version 99" in ui.view.link.text)
            await pilot.press("question_mark")
            assert isinstance(ui.screen, Help)
            await pilot.press("escape", "h", "escape", "o", "x", "y")
            assert isinstance(ui.screen, Overview)
    await serving.aclose()


def _frame_count(ui: AstraeaApp) -> int:
    return len(ui.view.trail.decode)


async def test_memory_of_the_past_is_bounded() -> None:
    made = world(30)
    taken: list[StateFrame] = frames(made, 50)
    ui = app(taken[:1])
    async with running(ui):
        for index in range(3000):
            frame = taken[index % 50]
            ui.take(frame.model_copy(update={"at": frame.at + index * 100}))
        assert _frame_count(ui) <= 600
