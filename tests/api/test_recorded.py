"""Requests as five clients send them, replayed byte for byte, headers included."""

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from astraea_local.frame import StateFrame
from tests.api.conftest import profile
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).with_name("recorded")
RECORDED = sorted(FOLDER.glob("*/*.http"))
CODEX_THREAD = "0199f3a0-1111-7aaa-8bbb-000000000001"
CODEX_CHILD = "0199f3a0-2222-7aaa-8bbb-000000000002"
CLAUDE_SESSION = "5d0c1c9e-8f43-4c0e-9b61-0d5f2f6f6a10"
OPENCODE = "ses_5f1c2a7d9ffe4Hk2Lm3N"


@dataclass
class Reply:
    """What came back, taken apart."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def kinds(self) -> list[str]:
        return [line[7:] for line in self.text.splitlines() if line.startswith("event: ")]

    @property
    def job(self) -> str:
        return self.headers["x-astraea-job"]


@pytest.fixture(scope="module")
def busy(start_server: StartServer, fast_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Its jobs have little room, because clients ask for 32,000 tokens and would get them."""
    settings = '[context]\nsize = 3072\nslots = 2\n[kv]\nlayout = "per_slot"\n'
    return start_server("--profile", profile(tmp_path_factory.mktemp("busy"), fast_path, settings))


def replay(server: Server, client: str, name: str) -> Reply:
    recorded = (FOLDER / client / f"{name}.http").read_text(encoding="utf-8")
    head, _, body = recorded.partition("\n\n")
    host = server.url.removeprefix("http://")
    content = body.encode()
    lines = head.replace("{host}", host).split("\n")
    if content:
        lines.append(f"Content-Length: {len(content)}")
    method = lines[0].split()[0]
    name_, port = host.split(":")
    with socket.create_connection((name_, int(port)), timeout=240) as sock:
        sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        with http.client.HTTPResponse(sock, method=method) as answer:
            answer.begin()
            headers = {key.lower(): value for key, value in answer.getheaders()}
            return Reply(answer.status, headers, answer.read().decode())


def job(server: Server, name: str) -> Any:
    frame = StateFrame.model_validate(server.state())
    return next(row for row in frame.jobs if row.job == name)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_no_request_of_a_client_is_refused(busy: Server, file: Path) -> None:
    reply = replay(busy, file.parent.name, file.stem)
    if file.stem == "0-probe" and file.parent.name == "claude_code":
        # It only wants to know that somebody is there.
        assert reply.status == 404
        return
    assert reply.status == 200, reply.text
    if reply.headers["content-type"].startswith("text/event-stream"):
        last = reply.events[-1]
        assert last.get("type", "chunk") in (
            "chunk",
            "response.completed",
            "response.incomplete",
            "message_stop",
        )
        assert "error" not in last


def test_codex_gets_its_events_and_its_agents_are_told_apart(busy: Server) -> None:
    asked = replay(busy, "codex", "1-ask")
    assert asked.kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert asked.kinds[-1] in ("response.completed", "response.incomplete")
    assert [e["sequence_number"] for e in asked.events] == list(range(len(asked.events)))
    usage = asked.events[-1]["response"]["usage"]
    assert usage["input_tokens"] > 100
    back = replay(busy, "codex", "2-after-tool")
    child = replay(busy, "codex", "4-subagent")
    assert (asked.job, back.job, child.job) == (CODEX_THREAD, CODEX_THREAD, CODEX_CHILD)
    cached = back.events[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"]
    # The last message of the first prompt and the template's end may be told anew.
    assert cached > usage["input_tokens"] - 32


def test_codex_finds_the_model_in_its_catalog(busy: Server) -> None:
    body = json.loads(replay(busy, "codex", "0-models").text)
    (model,) = body["models"]
    assert model["slug"] == body["data"][0]["id"]
    assert model["context_window"] == 1536
    assert {"truncation_policy", "experimental_supported_tools", "shell_type", "visibility"} <= set(model)


def test_claude_code_gets_its_events_and_its_agents_are_told_apart(busy: Server) -> None:
    asked = replay(busy, "claude_code", "2-ask")
    assert asked.kinds[0] == "message_start"
    assert [k for k in asked.kinds if k != "ping"][-3:] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    back = replay(busy, "claude_code", "4-after-tool")
    child = replay(busy, "claude_code", "5-subagent")
    assert asked.job == back.job == CLAUDE_SESSION
    assert child.job != asked.job
    assert job(busy, child.job).parent == asked.job

    def usage(reply: Reply) -> dict[str, int]:
        found: dict[str, int] = reply.events[0]["message"]["usage"]
        return found

    # Between the two the billing header changed.
    prompt = usage(asked)["input_tokens"] + usage(asked)["cache_read_input_tokens"]
    assert usage(back)["cache_read_input_tokens"] > prompt - 32
    counted = json.loads(replay(busy, "claude_code", "3-count").text)
    assert set(counted) == {"input_tokens"}


def test_claude_codes_titles_fit_their_schema(roomy: Server) -> None:
    events = replay(roomy, "claude_code", "1-title").events
    text = "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
    assert set(json.loads(text)) == {"title"}


def test_opencodes_sessions_are_jobs_and_its_tasks_their_children(busy: Server) -> None:
    asked = replay(busy, "opencode", "2-ask")
    back = replay(busy, "opencode", "3-after-tool")
    child = replay(busy, "opencode", "4-subagent")
    assert asked.job == back.job == OPENCODE
    assert job(busy, child.job).parent == OPENCODE
    assert asked.events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert back.events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert back.text.rstrip().endswith("data: [DONE]")


def test_cline_is_known_by_its_conversation(busy: Server) -> None:
    asked = replay(busy, "cline", "1-ask")
    back = replay(busy, "cline", "2-after-tool")
    assert asked.job == back.job
    assert back.events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_aider_gets_text_in_both_forms(busy: Server) -> None:
    streamed = replay(busy, "aider", "1-edit")
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in streamed.events)
    whole = json.loads(replay(busy, "aider", "2-commit-message").text)
    assert whole["choices"][0]["message"]["content"]
