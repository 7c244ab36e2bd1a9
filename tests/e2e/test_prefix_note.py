"""A client that changes an early part of its conversation is told so where its user looks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.frame import StateFrame
from tests.conftest import StartServer

pytestmark = pytest.mark.e2e

SYSTEM = {"role": "system", "content": "You fix bugs and run the tests after each change. " * 4}
USER = {"role": "user", "content": "The second test fails since yesterday."}


def test_a_changed_system_message_is_named_in_state_log_and_metrics(
    start_server: StartServer, tiny_path: Callable[[ShapeName], Path], tmp_path: Path
) -> None:
    profile = tmp_path / "tiny.toml"
    profile.write_text(
        f'[model]\nsource = "{tiny_path("tiny")}"\ngpu_layers = 0\nthreads = 1\n'
        "[prediction]\nhistory = false\n"
    )
    server = start_server("--profile", str(profile))

    def ask(*messages: dict[str, Any]) -> None:
        body = {"messages": list(messages), "max_tokens": 2, "ignore_eos": True}
        headers = {"X-Astraea-Job": "fixer"}
        httpx.post(
            f"{server.base_url}/chat/completions", json=body, headers=headers, timeout=60
        ).raise_for_status()

    def note() -> str:
        frame = StateFrame.model_validate(server.state())
        (job,) = (job for job in frame.jobs if job.job == "fixer")
        if job.prefix_note:
            assert any(job.prefix_note in event.text for event in frame.events)
        return job.prefix_note

    ask(SYSTEM, USER)
    ask(SYSTEM, USER, {"role": "assistant", "content": "x"}, USER)
    assert note() == ""
    ask({"role": "system", "content": "Today is Tuesday. " + str(SYSTEM["content"])}, USER)
    server.wait_until(lambda: note() != "")
    assert note().startswith("prefix lost at token ")
    assert note().endswith(": system message changed")
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert 'astraea_prefix_lost_total{cause="system"} 1.0' in metrics
