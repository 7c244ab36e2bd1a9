"""Twelve agents on four slots, through the official client, with llama.cpp really running."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.conftest import Server, StartServer
from tests.e2e.agents import Log, run_agent

pytestmark = pytest.mark.e2e

AGENTS = 12
TURNS = 3


def _run_all(server: Server, *, retries: int = 0) -> list[Log]:
    async def everybody() -> list[Log]:
        return await asyncio.gather(
            *(
                run_agent(server.base_url, f"agent{i}", turns=TURNS, seed=i, retries=retries)
                for i in range(AGENTS)
            )
        )

    return asyncio.run(everybody())


@pytest.mark.parametrize("layout", ["per_slot", "unified"])
def test_all_finish_with_their_own_conversation_and_cached_context(
    start_server: StartServer, layout: str
) -> None:
    """Nobody prefills its context twice, though slots change hands between calls.

    First come, first served has four run on any machine, and nobody next to itself; the default policy may
    find that fewer at a time end sooner, and then an agent returns before its slot is taken.
    """
    server = start_server("--slots", "4", "--kv-layout", layout, "--policy", "fcfs")
    logs = _run_all(server)
    assert [log.error for log in logs] == [""] * AGENTS
    for log in logs:
        assert len(set(log.jobs)) == 1, f"{log.name} was taken for several jobs: {log.jobs}"
        # 1 system + 1 task, then answer and tool result in turns, ending with an answer.
        assert len(log.messages) == 2 + 2 * TURNS - 1
        for turn in range(1, TURNS):
            before = log.prompts[turn - 1] + log.outputs[turn - 1]
            # All that was in KV when the last call ended, but for the last token and re-tokenized borders.
            assert log.cached[turn] >= before - 4, (log.name, turn, log.cached, log.prompts)
    assert len({log.jobs[0] for log in logs}) == AGENTS
    frame = httpx.get(f"{server.url}/astraea/v1/state").json()
    if layout == "per_slot":
        assert frame["kv"]["parks"] > 0
        assert frame["kv"]["restores"] > 0
    assert frame["kv"]["restore_failures"] == 0
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_every_agent_survives_the_death_of_the_engine(start_server: StartServer, number: int) -> None:
    """Killed in the middle, or aborted as by an assert: all finish, none hangs, the server goes on."""
    server = start_server()
    first_engine = server.engine_pid()

    async def kill_in_the_middle() -> list[Log]:
        agents = [
            asyncio.create_task(run_agent(server.base_url, f"agent{i}", turns=TURNS, seed=i, retries=5))
            for i in range(AGENTS)
        ]
        async with httpx.AsyncClient(base_url=server.url) as client:
            while True:
                frame = (await client.get("/astraea/v1/state")).json()
                running = any(slot["phase"] in ("prefill", "decode") for slot in frame["slots"])
                if frame["totals"]["segments_finished"] >= 3 and running:
                    break
                await asyncio.sleep(0.02)
        os.kill(first_engine, number)
        return await asyncio.wait_for(asyncio.gather(*agents), 200)

    logs = asyncio.run(kill_in_the_middle())
    assert [log.error for log in logs] == [""] * AGENTS
    assert server.healthy()
    assert server.engine_pid() != first_engine
    assert server.state()["restarts"] == 1
    assert server.stop() == 0
