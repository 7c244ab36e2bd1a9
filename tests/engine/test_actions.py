"""What users ask of an engine, with llama.cpp really running in the test's own process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.actions import act
from astraea_local.engine.binding import Model
from astraea_local.engine.frames import FrameBuilder
from astraea_local.engine.memory import MemoryProbe
from astraea_local.engine.memory_watch import MemoryWatch
from astraea_local.engine.messages import AskJob, Finished, JobAction, JobVerb, PauseScheduling, Reply
from astraea_local.frame import JobRow, StateFrame
from astraea_local.job_detail import JobDetail
from astraea_local.profile import Profile, override
from tests.engine.harness import Harness


@pytest.fixture
def h(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Harness]:
    """Two slots."""
    changes = {"context.size": 1024, "context.slots": 2, "kv.layout": "per_slot", "model.threads": 1}
    with Model(tiny_path("tiny")) as model:
        made = Harness(model, override(Profile(), changes))
        yield made
        made.close()


def _prompt(length: int, seed: int = 0) -> list[int]:
    return [10 + (seed * 31 + i * 7) % 90 for i in range(length)]


def _act(h: Harness, job: str, action: JobVerb, value: int = 0) -> Reply:
    return act(h.core, JobAction(7, job, action, value))


def _builder(h: Harness) -> FrameBuilder:
    probe = MemoryProbe((), Path(), 1.0)
    return FrameBuilder(h.core, MemoryWatch(probe, h.core.profile.memory, h.model.size_bytes))


def _frame(h: Harness) -> StateFrame:
    return _builder(h).build()


def _row(h: Harness, job: str) -> JobRow:
    (row,) = [row for row in _frame(h).jobs if row.job == job]
    return row


def _detail(h: Harness, job: str) -> JobDetail:
    return JobDetail.model_validate_json(act(h.core, AskJob(1, job)).text)


def test_park_moves_the_kv_and_the_job_finds_it_again(h: Harness) -> None:
    first = h.ask("a", _prompt(200))
    assert _row(h, "a").kv == "slot"
    reply = _act(h, "a", "park")
    assert (reply.request, reply.outcome, reply.text) == (7, "done", "parked 207 tokens to RAM")
    assert _row(h, "a").kv == "ram"
    assert _row(h, "a").kv_bytes > 0
    again = h.ask("a", _prompt(200) + list(first.output) + [11, 12])
    assert again.cached_tokens == 207
    (event,) = [e for e in h.core.log.lines if "on request" in e.text]
    assert event.text == "a: parked 207 tokens to RAM, on request"


def test_what_was_parked_on_request_is_not_brought_back_before_its_job_asks(h: Harness) -> None:
    h.ask("a", _prompt(200))
    _act(h, "a", "park")
    for _ in range(50):
        h.core.idle()
    row = _row(h, "a")
    assert (row.kv, row.next_move) == ("ram", "brought back on demand (parked on request)")


def test_drop_forgets_the_kv_wherever_it_is(h: Harness) -> None:
    for park in (False, True):
        h.ask("a", _prompt(100))
        if park:
            _act(h, "a", "park")
        assert _act(h, "a", "drop").text == "dropped 107 tokens"
        assert _row(h, "a").kv == "none"
        assert h.ask("a", _prompt(100)).cached_tokens == 0


def test_pinned_kv_stays_in_its_slot_until_unpinned(h: Harness) -> None:
    h.ask("a", _prompt(100))
    assert _act(h, "a", "pin").outcome == "done"
    for seed in range(1, 5):
        h.ask(f"other{seed}", _prompt(100, seed))
    assert (_row(h, "a").kv, _row(h, "a").pinned) == ("slot", True)
    refused = _act(h, "other4", "pin")
    assert (refused.outcome, refused.text) == (
        "refused",
        "other4: 1 other jobs are pinned, and one slot must stay free for everyone else",
    )
    assert _act(h, "a", "unpin").outcome == "done"
    for seed in range(5, 8):
        h.ask(f"other{seed}", _prompt(100, seed))
    assert (_row(h, "a").kv, _row(h, "a").pinned) != ("slot", True)
    assert not any(s.job == "a" for s in h.core.table)


def test_cancel_ends_what_runs_and_what_is_queued(h: Harness) -> None:
    segments = [h.submit("a", _prompt(50, seed), 400) for seed in range(4)]
    for _ in range(5):
        h.core.step()
    assert _act(h, "a", "cancel").text == "cancelled 4 requests"
    h.run()
    assert [h.finished(s).reason for s in segments] == ["cancelled"] * 4
    assert not h.core.busy


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("park", "a: it is running: wait for the end of its request, or cancel it"),
        ("drop", "a: it is running: wait for the end of its request, or cancel it"),
    ],
)
def test_the_kv_of_a_running_job_is_left_alone(h: Harness, action: JobVerb, why: str) -> None:
    segment = h.submit("a", _prompt(50), 20)
    h.core.step()
    assert _act(h, "a", action) == Reply(7, "refused", why)
    h.run()
    assert h.finished(segment).output_tokens == 20


def test_what_is_not_there_cannot_be_acted_on(h: Harness) -> None:
    assert _act(h, "nobody", "park") == Reply(7, "unknown", "there is no job 'nobody'")
    assert act(h.core, AskJob(3, "nobody")) == Reply(3, "unknown", "there is no job 'nobody'")
    h.ask("a", _prompt(30))
    assert _act(h, "a", "cancel").outcome == "refused"
    _act(h, "a", "drop")
    assert _act(h, "a", "drop").text == "a: it has no KV"
    assert _act(h, "a", "park").text == "a: it has no KV in a slot"


def test_priority_moves_a_waiting_job_to_the_front(h: Harness) -> None:
    h.ask("late", _prompt(40, 9))
    running = [h.submit(f"running{i}", _prompt(40, i), 300) for i in range(2)]
    early, late = h.submit("early", _prompt(40, 5)), h.submit("late", _prompt(40, 9))
    assert _act(h, "early", "priority", -2).text == "priority set to -2"
    assert _row(h, "early").priority == -2
    h.run()
    ends = [m.segment for m in h.messages if isinstance(m, Finished) and m.segment in (early, late)]
    assert ends == [late, early]
    assert all(h.finished(s).output_tokens == 300 for s in running)


def test_a_priority_that_the_policy_ignores_is_said_to_be(h: Harness) -> None:
    h.ask("a", _prompt(20))
    h.core.dispatcher.set_policy("fcfs")
    assert _act(h, "a", "priority", 1).text == "priority set to 1, which the policy fcfs does not look at"


def test_paused_scheduling_admits_nothing_lets_what_runs_end_and_costs_nothing(h: Harness) -> None:
    running = h.submit("a", _prompt(50), 20)
    h.core.step()
    assert act(h.core, PauseScheduling(1, on=True)).text == "scheduling paused: nothing new is admitted"
    assert act(h.core, PauseScheduling(2, on=True)).text == "scheduling was paused already"
    waits = h.submit("b", _prompt(50, 1), 5)
    h.run()
    assert h.finished(running).output_tokens == 20
    assert not h.core.busy  # the loop sleeps
    assert _frame(h).scheduling_paused
    assert _row(h, "b").state == "queued"
    assert act(h.core, PauseScheduling(3, on=False)).text == "scheduling resumed: 1 requests waited"
    h.run()
    assert h.finished(waits).output_tokens == 5


def test_a_request_that_waits_while_paused_can_be_cancelled(h: Harness) -> None:
    act(h.core, PauseScheduling(1, on=True))
    waits = h.submit("b", _prompt(50), 5)
    h.run()
    assert _act(h, "b", "cancel").outcome == "done"
    h.run()
    assert h.finished(waits).reason == "cancelled"


def test_the_detail_tells_the_life_of_a_job(h: Harness) -> None:
    first = h.ask("a", _prompt(120), 6)
    _row(h, "a")
    _act(h, "a", "park")
    _row(h, "a")
    h.submit("child", _prompt(20, 4), 4, parent="a")
    h.run()
    h.ask("a", _prompt(120) + list(first.output) + [11, 12], 6, tool="bash:pytest")
    detail = _detail(h, "a")
    assert (detail.state, detail.children, detail.forgotten) == ("waiting", ["child"], 0)
    kinds = [(span.kind, span.tier) for span in detail.spans]
    run = [("queued", None), ("prefill", None), ("decode", None)]
    assert kinds == [*run, ("tool", "slot"), ("parked", "ram"), *run, ("tool", None)]
    assert all(a.end == b.start for a, b in zip(detail.spans, detail.spans[1:], strict=False))
    one, two = detail.segments
    assert (one.number, one.outcome, one.prompt_tokens, one.cached_tokens) == (0, "stop", 120, 0) or (
        one.outcome == "length"
    )
    assert (two.number, two.cached_tokens, two.output_tokens) == (1, 125, 6)
    assert two.wait is not None
    assert two.wait.tool == "bash:pytest"
    assert two.wait.predicted_p50_s <= two.wait.predicted_p90_s
    assert 0 < two.predicted_output_p50 <= two.predicted_output_p90 <= 6
    assert two.predicted_service_s > 0
    assert detail.wait is not None
    assert detail.wait.seconds <= detail.wait.predicted_p50_s
    assert json.loads(act(h.core, AskJob(1, "a")).text)["detail_version"] == 1
    assert (_detail(h, "child").parent, _detail(h, "child").segments[0].wait) == ("a", None)


def test_frames_tell_what_is_hosted_and_what_jobs_received(h: Harness) -> None:
    first = h.ask("a", _prompt(100))
    h.ask("a", _prompt(100) + list(first.output) + [11, 12])
    frame, row = _frame(h), _row(h, "a")
    assert frame.server.quant == "Q8_0"
    assert frame.server.parameters == h.model.n_params
    assert frame.memory.weights_bytes == h.model.size_bytes
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens) == (210, 107, 16)
    assert row.created_s > 0
    assert row.wait_p50_s is not None
    assert row.wait_p90_s is not None
    assert row.since_s <= row.wait_p50_s <= row.wait_p90_s
    assert frame.completion.finished == 0


def test_completion_is_shown_beside_first_come_first_served(h: Harness) -> None:
    for name in ("a", "b"):
        h.submit(name, _prompt(60, len(name)), 10)
    h.run()
    for name in ("a", "b"):
        h.core.scheduler.end_job(name)
    row = _frame(h).completion
    assert row.finished == 2
    assert row.fcfs_mean_s is not None
    assert row.mean_s == pytest.approx(row.fcfs_mean_s, rel=0.5)
    assert row.p95_s >= row.mean_s


def test_slots_show_their_speed_and_quantum(h: Harness) -> None:
    builder = _builder(h)
    h.submit("a", _prompt(50), 300)
    seen = []
    for _ in range(60):
        h.core.step()
        seen.append(next(slot for slot in builder.build().slots if slot.job == "a"))
    assert seen[-1].tokens_s > 0
    assert seen[-1].quantum == 50 + 59
    assert [s.quantum for s in seen] == sorted(s.quantum for s in seen)
