"""Each rule speaks when it should, names a field that exists, and is silent otherwise."""

from typing import Any

import pytest

from astraea_local.frame import StateFrame
from astraea_local.profile import Profile, fields
from astraea_local.tui.advisor import RULES, advise
from astraea_local.tui.mock import MockWorld
from tests.tui.driving import START, frames, world


@pytest.fixture(scope="module")
def calm() -> StateFrame:
    frame = MockWorld(3, agents=1, start=START).frame()
    quiet = frame.memory.model_copy(update={"pressure": {}})
    return frame.model_copy(update={"memory": quiet, "jobs": [], "queue": []})


def changed(frame: StateFrame, **parts: Any) -> StateFrame:
    """A copy with fields of its parts replaced: `kv={"parks": 3}`."""
    update = {
        name: getattr(frame, name).model_copy(update=value)
        if isinstance(value, dict) and name != "steps"
        else value
        for name, value in parts.items()
    }
    return frame.model_copy(update=update)


def test_a_calm_server_gets_no_advice(calm: StateFrame) -> None:
    assert advise(calm) == []


BUSY = frames(world(40), 1)[0]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("context.size", {"restarts": 1}),
    ("context.size", {"kv": {"cells_used": 98_304, "parks": 50}, "totals": {"segments_finished": 10}}),
    ("memory.elastic", {"memory": {"pressure": {"vram": "high"}, "vram_others": 9, "vram_ours": 4}}),
    ("context.size", {"memory": {"pressure": {"vram": "high"}, "vram_others": 1, "vram_ours": 4}}),
    ("retention.ram_mib", {"memory": {"pressure": {"ram": "critical"}}}),
    ("retention.ram_mib", {"kv": {"ram_bytes": 10, "ram_budget_bytes": 10, "evictions": 2}}),
    ("retention.disk_mib", {"kv": {"disk_bytes": 10, "disk_budget_bytes": 10}}),
    ("retention.disk_path", {"kv": {"disk_failures": 1}}),
    ("retention.disk_mib", {"memory": {"pressure": {"disk": "high"}, "disk_free": 1}}),
    (
        "retention.ram_mib",
        {
            "kv": {"ram_budget_bytes": 0},
            "totals": {"segments_finished": 30, "prompt_tokens": 100, "cached_tokens": 10},
        },
    ),
    (
        "retention.policy",
        {"jobs": BUSY.jobs, "totals": {"segments_finished": 30, "prompt_tokens": 100, "cached_tokens": 10}},
    ),
    ("context.slots", {"queue": BUSY.queue * 20, "speed": {"width": 2}}),
    ("context.slots", {"queue": BUSY.queue * 20, "slots": BUSY.slots}),
    ("kv.layout", {"jobs": BUSY.jobs, "server": {"job_context": 1000, "layout": "per_slot"}}),
    ("context.size", {"jobs": BUSY.jobs, "server": {"job_context": 1000, "layout": "unified"}}),
    ("model.gpu_layers", {"memory": {"gpu": "A card", "pressure": {}}, "server": {"offloaded": "0/33"}}),
    ("scheduler.max_step_ms", {"steps": {"mean_ms": 400.0}}),
    ("kv.max_stall_ms", {"steps": {"mean_ms": 40.0, "kv_moves_ms": 20.0}}),
    ("scheduler.preempt_factor", {"totals": {"segments_finished": 30, "preemptions": 20}}),
    ("scheduler.policy", {"completion": {"finished": 30, "mean_s": 60.0, "fcfs_mean_s": 40.0}}),
    ("kv.layout", {"kv": {"restore_failures": 1}}),
    (
        "prediction.history",
        {
            "jobs": [
                job.model_copy(update={"state": "waiting", "since_s": 90.0, "wait_p90_s": 5.0})
                for job in BUSY.jobs
            ]
        },
    ),
    (
        "context.slots",
        {
            "jobs": BUSY.jobs,
            "server": {"job_context": 1000, "layout": "per_slot"},
            "totals": {"segments_finished": 200},
        },
    ),
]


@pytest.mark.parametrize(("field", "parts"), CASES, ids=[f"{i}-{f}" for i, (f, _) in enumerate(CASES)])
def test_a_finding_names_the_field_to_change(calm: StateFrame, field: str, parts: dict[str, Any]) -> None:
    assert field in {advice.field for advice in advise(changed(calm, **parts))}


def test_every_named_field_exists_and_every_rule_has_a_case(calm: StateFrame) -> None:
    known = {name for name, _, _ in fields(Profile())}
    assert {field for field, _ in CASES} <= known
    spoken = {rule for rule in RULES for _, parts in CASES if list(rule(changed(calm, **parts)))}
    assert spoken == set(RULES)


def test_the_gravest_comes_first(calm: StateFrame) -> None:
    frame = changed(
        calm, restarts=1, kv={"restore_failures": 1}, totals={"segments_finished": 30, "preemptions": 30}
    )
    assert [advice.severity for advice in advise(frame)] == ["error", "warning", "info"]
