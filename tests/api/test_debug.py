"""Simulated pressure over HTTP: behind its switch, checked, and passed on to the engine."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from astraea_local.api import debug, errors
from astraea_local.engine.memory import Reading
from astraea_local.frame import MemoryRow
from astraea_local.profile import Profile, override
from tests.conftest import Server

PATH = "/astraea/v1/debug/pressure"


class _Frame:
    def __init__(self, vram_total: int | None) -> None:
        self.memory = MemoryRow(vram_total=vram_total)


class _Engine:
    """Keeps what it is told, as the supervisor does while no child is there."""

    def __init__(self, vram_total: int | None = None) -> None:
        self.simulated: Reading | None = None
        self.frame = _Frame(vram_total)

    def simulate_pressure(self, reading: Reading | None) -> None:
        self.simulated = reading


class _Service:
    def __init__(self, engine: _Engine, *, enabled: bool) -> None:
        self.engine = engine
        self.profile = override(Profile(), {"memory.debug_pressure": enabled})


def client(engine: _Engine, *, enabled: bool = True) -> httpx.AsyncClient:
    app = FastAPI()
    app.state.service = _Service(engine, enabled=enabled)
    errors.install(app)
    app.include_router(debug.router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def post(engine: _Engine, body: Any) -> httpx.Response:
    async with client(engine) as http:
        return await http.post(PATH, json=body)


async def test_what_is_given_replaces_what_was_given_before() -> None:
    engine = _Engine()
    answer = await post(engine, {"vram_total": 1000, "vram_others": 900, "gpu": "Card"})
    assert answer.json() == {"simulated": {"gpu": "Card", "vram_total": 1000, "vram_others": 900}}
    assert engine.simulated == Reading(gpu="Card", vram_total=1000, vram_others=900)
    await post(engine, {"ram_available": 0})
    assert engine.simulated == Reading(ram_available=0)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_an_empty_body_or_delete_ends_it(method: str) -> None:
    engine = _Engine()
    await post(engine, {"disk_free": 5})
    assert engine.simulated is not None
    async with client(engine) as http:
        answer = await http.request(method, PATH, json={} if method == "POST" else None)
    assert (answer.status_code, answer.json()) == (200, {"simulated": {}})
    assert engine.simulated is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"vram_totl": 5}, "vram_totl"),
        ({"vram_free": -1}, "vram_free"),
        ({"gpu_load": 37}, "gpu_load"),
        ({"ram_available": "lots"}, "ram_available"),
        ({"disk_total": 0}, "disk_total"),
        ({"vram_others": 5}, "vram_total"),
    ],
)
async def test_a_wrong_field_is_named_and_changes_nothing(body: Any, param: str) -> None:
    engine = _Engine()
    await post(engine, {"disk_free": 5})
    answer = await post(engine, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert engine.simulated == Reading(disk_free=5)


async def test_a_part_is_not_larger_than_the_whole() -> None:
    answer = await post(_Engine(), {"vram_total": 10, "vram_others": 11})
    assert answer.status_code == 400
    assert "vram_others: must not exceed vram_total (10)" in answer.json()["error"]["message"]


async def test_the_size_of_a_real_gpu_need_not_be_repeated() -> None:
    engine = _Engine(vram_total=8000)
    assert (await post(engine, {"vram_others": 5000})).status_code == 200
    assert engine.simulated == Reading(vram_others=5000)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_it_is_off_unless_the_profile_says_otherwise(method: str) -> None:
    engine = _Engine(vram_total=8000)
    async with client(engine, enabled=False) as http:
        answer = await http.request(method, PATH, json={"vram_free": 0})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "debug_pressure_off"
    assert "memory.debug_pressure = true" in answer.json()["error"]["message"]
    assert engine.simulated is None


@pytest.mark.e2e
def test_a_server_says_how_to_switch_it_on(server: Server) -> None:
    answer = httpx.post(f"{server.url}{PATH}", json={"ram_available": 0}, timeout=10)
    assert answer.status_code == 404
    assert "memory.debug_pressure" in answer.json()["error"]["message"]
