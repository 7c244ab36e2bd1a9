"""Clients that do everything wrong, to see that a server serves the others meanwhile and keeps its memory.

Raw sockets, because no HTTP library would send these requests.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import psutil

_CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_ANSWER_S = 60.0
_HEALTHY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": True}
_MIB = 1 << 20


@dataclass(slots=True)
class Load:
    """How much of what."""

    malformed: int = 10_000
    at_once: int = 32
    half_open: int = 64
    slow: int = 16
    floods: int = 32
    """Clients that send headers without end."""


@dataclass(slots=True)
class Outcome:
    """What came of it. Memory is that of all the server's processes, MiB."""

    statuses: Counter[str] = field(default_factory=Counter)
    """Answers by status; `closed` = the connection ended without one, `hung` = neither in time."""
    healthy: int = 0
    healthy_failed: int = 0
    healthy_s: list[float] = field(default_factory=list)
    memory_before: float = 0.0
    memory_after: float = 0.0
    memory_most: float = 0.0


async def run(host: str, port: int, pid: int, load: Load, *, seed: int = 0) -> Outcome:
    """Sends it all at once; healthy requests go on from beginning to end. `pid` is the server's process."""
    outcome = Outcome()
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=_ANSWER_S) as client:
        # The first requests fill caches and pools, which stay.
        await malformed(host, port, min(500, load.malformed), load.at_once, seed + 1)
        await _healthy(client)
        outcome.memory_before = outcome.memory_most = memory(pid)
        over = asyncio.Event()
        watch = asyncio.create_task(_watch(client, pid, outcome, over))
        try:
            results = await asyncio.gather(
                malformed(host, port, load.malformed, load.at_once, seed),
                _many(load.half_open, lambda i: _talk(host, port, _half(i))),
                _many(load.slow, lambda i: _trickle(host, port, i)),
                _many(load.floods, lambda _i: _flood(host, port)),
            )
        finally:
            over.set()
            await watch
    for result in results:
        outcome.statuses.update(result)
    outcome.memory_after = memory(pid)
    return outcome


async def malformed(host: str, port: int, count: int, at_once: int, seed: int) -> Counter[str]:
    """Answers to that many malformed requests, by status."""
    source = random.Random(seed)  # noqa: S311
    requests = iter([malformed_request(source) for _ in range(count)])
    statuses: Counter[str] = Counter()

    async def one_after_another() -> None:
        for request in requests:
            statuses[await _talk(host, port, request)] += 1

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    return statuses


def malformed_request(source: random.Random) -> bytes:
    """A request of which something is wrong: its line, its headers, its framing, its JSON, or its fields."""
    return source.choice(_FAMILIES)(source)


def memory(pid: int) -> float:
    """Resident memory of a process and its children, MiB."""
    process = psutil.Process(pid)
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total / _MIB


def _noise(source: random.Random) -> bytes:
    return source.randbytes(source.randint(1, 400)) + b"\r\n\r\n"


def _line(source: random.Random) -> bytes:
    method = source.choice([b"GET", b"P\x00ST", b"", b"get", b"POST" * 50, b"CONNECT", b"PRI", b"DELETE"])
    path = source.choice(
        [b"/", b"//..//..%2f", b"/v1/" + b"x" * 3000, b"*", b"\xff", b"http://evil.example/"]
    )
    version = source.choice([b"HTTP/1.1", b"HTTP/9.9", b"HTTP", b"", b"HTTP/2.0"])
    return b"%b %b %b\r\nHost: localhost\r\n\r\n" % (method, path, version)


def _headers(source: random.Random) -> bytes:
    bad = source.choice(
        [
            b"no colon here",
            b"Host: evil.example",
            b"Origin: https://evil.example",
            b"X-\x00: y",
            b"X: " + b"y" * 70_000,
            b"\r\n".join(b"X-%d: y" % i for i in range(300)),
            b"Authorization: Bearer \xff\xfe",
            b"Content-Length: -5",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Transfer-Encoding: chunked\r\nContent-Length: 4",
            b"Transfer-Encoding: gzip",
            b"Expect: 100-continue\r\nContent-Length: 0",
            b"Upgrade: websocket\r\nConnection: Upgrade",
        ]
    )
    return _CHAT + bad + b"\r\n\r\n"


def _chunks(source: random.Random) -> bytes:
    body = source.choice([b"zz\r\nhello\r\n", b"5\r\nhel", b"-1\r\n\r\n", b"fffffffffffffff0\r\n", b"0\r\n"])
    return _CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"\r\n\r\n"


def _json(source: random.Random) -> bytes:
    content = source.choice(
        [
            b"{nope",
            b"",
            b"null",
            b"[" * 5000,
            b'{"messages": ' + b'{"a":' * 300 + b"1" + b"}" * 300,
            b"\xff\xfe\x00",
            b'"' + b"x" * 5000,
            b"[" + b"1," * 20_000 + b"1]",
            source.randbytes(500),
            b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 0}',
        ]
    )
    return _post(content)


def _fields(source: random.Random) -> bytes:
    wrong = source.choice([-1, 1e999, "x", [], {}, True, 2**70, "\x00", [[[]]], "é" * 300])
    name = source.choice(
        "messages max_tokens temperature top_p n stop logit_bias tools response_format grammar seed "
        "json_schema metadata user nvext service_tier stream_options top_logprobs".split()
    )
    # Always one fault that is refused, so that none of them costs an answer.
    body = {"messages": [{"role": "user", "content": "x"}], "min_p": 7, name: wrong}
    return _post(json.dumps(body).encode())


def _elsewhere(source: random.Random) -> bytes:
    path = source.choice(["/tokenize", "/detokenize", "/v1/completions", "/astraea/v1/policy", "/v1/models"])
    content = source.choice([b"{}", b"[]", b'{"tokens": [-1]}', b'{"policy": "x"}', b'{"content": 5}'])
    return _post(content).replace(b"/v1/chat/completions", path.encode(), 1)


_FAMILIES = (_noise, _line, _headers, _chunks, _json, _fields, _elsewhere)


def _post(content: bytes) -> bytes:
    return _CHAT + b"Content-Length: %d\r\n\r\n" % len(content) + content


def _half(number: int) -> bytes:
    whole = _post(json.dumps(_HEALTHY).encode())
    return whole[: (number * 7) % (len(whole) - 1)]


async def _talk(host: str, port: int, sent: bytes) -> str:
    """Sends something and waits for the answer's status, or for the end of the connection."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(sent)
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return "hung"
    except OSError:
        return "closed"
    parts = line.split()
    return parts[1].decode("ascii", "replace") if len(parts) > 1 else "closed"


async def _trickle(host: str, port: int, number: int) -> str:
    """One byte now and then, of the headers or of the body."""
    whole = _post(json.dumps(_HEALTHY).encode())
    begin = 20 if number % 2 else whole.index(b"\r\n\r\n") + 4
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(whole[:begin])
                for index in range(begin, len(whole) - 1):
                    writer.write(whole[index : index + 1])
                    await writer.drain()
                    line = b""
                    with contextlib.suppress(TimeoutError):
                        line = await asyncio.wait_for(reader.readline(), 0.2)
                        return line.split()[1].decode() if line else "closed"
            finally:
                writer.close()
    except TimeoutError:
        return "hung"
    except OSError:
        return "closed"
    return "closed"


async def _flood(host: str, port: int) -> str:
    """Headers without end."""
    sent = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Flood: %b\r\n" % (b"y" * 500) * 2000
    return await _talk(host, port, sent)


async def _many(count: int, client: Callable[[int], Awaitable[str]]) -> Counter[str]:
    return Counter(await asyncio.gather(*(client(i) for i in range(count))))


async def _watch(client: httpx.AsyncClient, pid: int, outcome: Outcome, over: asyncio.Event) -> None:
    """Healthy requests one after another, each timed, until all is over."""
    while not over.is_set():
        began = time.perf_counter()
        fine = await _healthy(client)
        outcome.healthy_s.append(time.perf_counter() - began)
        outcome.healthy += fine
        outcome.healthy_failed += not fine
        outcome.memory_most = max(outcome.memory_most, memory(pid))


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        answer = await client.post("/v1/chat/completions", json=_HEALTHY)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200
