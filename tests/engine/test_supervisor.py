"""The front's side of the engine: what happens to requests when the child dies."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.memory import Reading
from astraea_local.engine.messages import Delta, Failed, Finished, Submit
from astraea_local.engine.sampling import SamplingParams
from astraea_local.engine.supervisor import Engine, EngineStartError, Handle, SegmentEvent
from astraea_local.engine.worker import EngineSpec
from astraea_local.job_detail import JobDetail
from astraea_local.profile import Profile, override
from tests.engine import children


@pytest.fixture
def spec(tiny_path: Callable[[ShapeName], Path]) -> EngineSpec:
    """A small engine, ready in a second."""
    changes = {"context.size": 1024, "context.slots": 2, "kv.layout": "per_slot", "model.threads": 1}
    return EngineSpec(override(Profile(), changes), tiny_path("tiny"))


@asynccontextmanager
async def running(spec: EngineSpec, **options: Any) -> AsyncIterator[Engine]:
    """A started engine, stopped at the end."""
    engine = Engine(spec, **options)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop(0)


def submit(engine: Engine, *, length: int = 20, count: int = 8, stream: bool = True) -> Handle:
    """Asks for `count` tokens."""
    prompt = np.arange(10, 10 + length, dtype=np.int32)
    sampling = SamplingParams(temperature=0)
    request = Submit(engine.next_id(), "job", prompt, count, sampling, ignore_eos=True, stream=stream)
    return engine.submit(request)


async def events(handle: Handle, limit_s: float = 30) -> list[SegmentEvent]:
    """All events of a segment."""
    async with asyncio.timeout(limit_s):
        return [event async for event in handle]


def engine_pid(engine: Engine) -> int:
    assert engine.ready is not None
    return engine.ready.pid


async def test_progress_ready_and_frames(spec: EngineSpec) -> None:
    """Loading is reported, and the state is known from the start."""
    seen: list[float] = []
    async with running(spec, on_progress=seen.append) as engine:
        assert seen[-1] == 1.0
        assert engine.status == "ready"
        assert engine.ready is not None
        assert (engine.ready.slots, engine.ready.job_context) == (2, 512)
        last = (await events(submit(engine)))[-1]
        assert isinstance(last, Finished)
        assert last.output_tokens == 8
        assert engine.in_flight == 0
        async with asyncio.timeout(10):
            while engine.frame is None or engine.frame.totals.segments_finished == 0:
                await engine.next_frame(1)
        assert engine.frame.slots[0].phase == "resident"


async def test_killed_while_streaming_is_an_error_to_retry(spec: EngineSpec) -> None:
    """Text that was delivered must not come twice, so the request ends; the engine is back for the next."""
    async with running(spec) as engine:
        handle = submit(engine, count=450)
        pid = engine_pid(engine)
        seen: list[SegmentEvent] = []
        async with asyncio.timeout(60):
            async for event in handle:
                seen.append(event)
                if isinstance(event, Delta):
                    os.kill(pid, signal.SIGKILL)
        last = seen[-1]
        assert isinstance(last, Failed)
        assert last.retryable
        assert last.code == "engine_restarted"
        assert "signal 9" in last.message
        again = (await events(submit(engine), 60))[-1]
        assert isinstance(again, Finished)
        assert engine.restarts == 1
        assert engine_pid(engine) != pid


async def test_killed_before_anything_was_delivered_is_run_again(spec: EngineSpec) -> None:
    """Clients of whole answers, and those still queued, notice nothing."""
    async with running(spec) as engine:
        reference = (await events(submit(engine, count=400, stream=False)))[-1]
        handles = [submit(engine, count=400, stream=False) for _ in range(4)]
        async with asyncio.timeout(30):
            await anext(aiter(handles[0]))
        os.kill(engine_pid(engine), signal.SIGKILL)
        for handle in handles:
            last = (await events(handle, 60))[-1]
            assert isinstance(last, Finished)
            assert isinstance(reference, Finished)
            assert last.output[:8] == reference.output[:8]


async def test_a_real_assert_of_llama_cpp_is_survived(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GGML_ASSERT aborts the child; the request is run again in the next one."""
    monkeypatch.setenv(children.FLAG, str(tmp_path / "asserted"))
    async with running(spec, target=children.asserts_once) as engine:
        last = (await events(submit(engine, stream=False), 60))[-1]
        assert isinstance(last, Finished)
        assert engine.restarts == 1
        assert (tmp_path / "asserted").exists()


async def test_a_request_that_kills_every_engine_is_given_up(spec: EngineSpec) -> None:
    """After a few tries it is the request's fault; it ends, and so does the dying."""
    async with running(spec, target=children.always_asserts) as engine:
        last = (await events(submit(engine, stream=False), 90))[-1]
        assert isinstance(last, Failed)
        assert "signal 6" in last.message
        assert engine.restarts <= 3


async def test_a_child_that_dies_at_the_start_is_an_error(spec: EngineSpec) -> None:
    """No endless restarts of something that never worked."""
    engine = Engine(spec, target=children.never_starts)
    with pytest.raises(EngineStartError, match="exit code 3"):
        await engine.start()
    last = (await events(submit(engine)))[-1]
    assert isinstance(last, Failed)
    assert last.code == "engine_failed"
    await engine.stop(0)


async def test_a_model_that_cannot_be_loaded_says_why(spec: EngineSpec, tmp_path: Path) -> None:
    """The engine's own words reach the front."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF but nothing more")
    engine = Engine(EngineSpec(spec.profile, bad))
    with pytest.raises(EngineStartError, match=r"bad\.gguf"):
        await engine.start()
    await engine.stop(0)


async def test_a_context_too_large_for_the_model_says_what_to_set(spec: EngineSpec) -> None:
    """The message names the field and the largest value."""
    profile = override(spec.profile, {"context.size": 1 << 20})
    engine = Engine(EngineSpec(profile, spec.model_path))
    with pytest.raises(EngineStartError, match=r"context\.size to at most"):
        await engine.start()
    await engine.stop(0)


async def test_stopping_lets_running_segments_end(spec: EngineSpec) -> None:
    """Within the time given; the rest gets an error to retry."""
    engine = Engine(spec)
    await engine.start()
    quick = submit(engine, count=50)
    await engine.stop(20)
    last = (await events(quick))[-1]
    assert isinstance(last, Finished)
    late = (await events(submit(engine)))[-1]
    assert isinstance(late, Failed)
    assert late.retryable


async def test_simulated_pressure_outlives_the_engine(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings that a user pretends reach the child at once, and the next one before any request."""
    log = tmp_path / "pressure"
    log.touch()
    monkeypatch.setenv(children.FLAG, str(log))

    async def line(number: int) -> str:
        async with asyncio.timeout(30):
            while len(lines := log.read_text().splitlines()) <= number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # another process writes the file
        return lines[number]

    async with running(spec, target=children.notes_pressure) as engine:
        first = engine_pid(engine)
        given = Reading(vram_total=1000, vram_others=900)
        engine.simulate_pressure(given)
        assert await line(0) == f"{first} {given}"
        os.kill(first, signal.SIGKILL)
        second = await line(1)
        assert second.endswith(f" {given}")
        assert not second.startswith(f"{first} ")
        engine.simulate_pressure(None)
        assert (await line(2)).endswith(" None")
        assert engine.simulated is None


async def test_questions_are_answered(spec: EngineSpec) -> None:
    async with running(spec) as engine:
        await events(submit(engine))
        parked = await engine.act("job", "park")
        assert (parked.outcome, parked.text.split()[0]) == ("done", "parked")
        assert (await engine.act("job", "park")).outcome == "refused"
        assert (await engine.job_detail("nobody")).outcome == "unknown"
        detail = JobDetail.model_validate_json((await engine.job_detail("job")).text)
        assert [s.output_tokens for s in detail.segments] == [8]


async def test_a_resize_outlasts_the_engine(spec: EngineSpec) -> None:
    async with running(spec) as engine:
        refused = await engine.resize(512, 64)
        assert refused.outcome == "refused"
        assert (await engine.resize(2048, 4)).outcome == "done"
        os.kill(engine_pid(engine), signal.SIGKILL)
        async with asyncio.timeout(30):
            while engine.restarts == 0 or engine.status != "ready":
                await engine.next_frame(0.1)
        assert engine.ready is not None
        assert (engine.ready.context, engine.ready.slots, engine.ready.job_context) == (2048, 4, 512)
        assert isinstance((await events(submit(engine)))[-1], Finished)


async def test_a_cancelled_job_fails_for_its_clients(spec: EngineSpec) -> None:
    async with running(spec) as engine:
        handles = [submit(engine, count=450) for _ in range(3)]
        async with asyncio.timeout(30):
            await anext(aiter(handles[0]))
        assert (await engine.act("job", "cancel")).text == "cancelled 3 requests"
        for handle in handles:
            last = (await events(handle))[-1]
            assert isinstance(last, Failed)
            assert (last.code, last.retryable) == ("cancelled", False)
        assert engine.in_flight == 0


async def test_a_question_to_an_engine_that_dies_is_not_left_without_an_answer(spec: EngineSpec) -> None:
    async with running(spec) as engine:
        await events(submit(engine))
        os.kill(engine_pid(engine), signal.SIGSTOP)
        asked = asyncio.create_task(engine.job_detail("job"))
        await asyncio.sleep(0)
        os.kill(engine_pid(engine), signal.SIGKILL)
        reply = await asyncio.wait_for(asked, 20)
        assert (reply.outcome, "signal 9" in reply.text) == ("unavailable", True)
        assert "restarting" in (await engine.act("job", "pin")).text


async def test_a_pause_of_the_scheduler_and_the_event_log_outlive_the_engine(spec: EngineSpec) -> None:
    async with running(spec) as engine:
        await engine.pause_scheduling(True)
        os.kill(engine_pid(engine), signal.SIGKILL)
        handle = submit(engine)
        async with asyncio.timeout(60):
            while engine.restarts == 0 or engine.status != "ready":
                await engine.next_frame(1)
            while engine.frame is None or not engine.frame.scheduling_paused or not engine.frame.queue:
                await engine.next_frame(1)
        await engine.pause_scheduling(False)
        assert isinstance((await events(handle, 60))[-1], Finished)
        lines = engine.frame.events
        texts = [line.text for line in lines]
        assert any("the engine died (signal 9)" in text for text in texts)
        assert any("starting the engine again" in text for text in texts)
        ids = [line.id for line in lines]
        assert ids == list(range(1, len(ids) + 1))


async def test_an_engine_that_dies_while_paused_takes_no_memory_until_it_is_resumed(spec: EngineSpec) -> None:
    async with running(spec) as engine:
        await events(submit(engine))
        assert (await engine.suspend(True)).outcome == "done"
        os.kill(engine_pid(engine), signal.SIGKILL)
        async with asyncio.timeout(30):
            while engine.status != "paused":
                await engine.next_frame(1)
        assert "resume it first" in (await engine.resize(2048, 4)).text
        assert (await engine.suspend(True)).text == "the server is paused already"
        handle = submit(engine)
        assert engine.restarts == 0
        assert (await engine.suspend(False)).text == "the model is loaded again; waiting requests go on"
        assert isinstance((await events(handle))[-1], Finished)
        assert (engine.status, engine.restarts) == ("ready", 1)


async def test_a_resume_that_cannot_load_the_model_may_be_repeated(spec: EngineSpec, tmp_path: Path) -> None:
    """As when the file is on a disk that is not mounted, or others have the memory just now."""
    model = tmp_path / "model.gguf"
    model.write_bytes(spec.model_path.read_bytes())
    away = tmp_path / "away.gguf"
    async with running(replace(spec, model_path=model)) as engine:
        assert (await engine.suspend(True)).outcome == "done"
        os.kill(engine_pid(engine), signal.SIGKILL)
        async with asyncio.timeout(30):
            while engine.status != "paused":
                await engine.next_frame(1)
        handle = submit(engine)
        model.rename(away)
        reply = await engine.suspend(False)
        assert (reply.outcome, "stays paused" in reply.text) == ("unavailable", True)
        assert engine.status == "paused"
        away.rename(model)
        assert (await engine.suspend(False)).outcome == "done"
        assert isinstance((await events(handle))[-1], Finished)
