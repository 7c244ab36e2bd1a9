"""The simulator's workloads: published statistics, reproducible, and never beyond the context limit."""

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astraea_local.bench.infercept import CATEGORIES, Category
from astraea_local.bench.trace import verb
from astraea_local.bench.workloads import (
    WORKLOADS,
    SimJob,
    WorkloadError,
    coding,
    heavy_tail,
    infercept,
    make,
    mixed,
    trace,
)

_TRACE = os.environ.get("ASTRAEA_TRACE")
# Above this no context of the table is cut.
_ROOMY = 16_384


@cache
def _many(name: str, context_limit: int | None = None) -> tuple[SimJob, ...]:
    return make(name, 1, jobs=24_000 if name == "infercept" else 1500, rate=1.0, context_limit=context_limit)


def _waits(jobs: Sequence[SimJob]) -> list[float]:
    return [call.tool_s for job in jobs for call in job.calls[:-1]]


def _check(job: SimJob, limit: int) -> None:
    """What the simulator relies on."""
    assert job.context_tokens <= limit
    assert 0 <= job.shared_tokens <= job.calls[0].new_tokens
    assert all(call.new_tokens >= 1 and call.output_tokens >= 1 for call in job.calls)
    assert all(call.tool and call.tool_s >= 0 for call in job.calls[:-1])
    assert (job.calls[-1].tool, job.calls[-1].tool_s) == ("", 0.0)


# --- every workload -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_seed_decides_everything(name: str) -> None:
    assert make(name, 3, jobs=20, rate=1.0) == make(name, 3, jobs=20, rate=1.0)
    assert make(name, 3, jobs=20, rate=1.0) != make(name, 4, jobs=20, rate=1.0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_more_jobs_leave_the_first_ones_alone(name: str) -> None:
    assert make(name, 3, jobs=40, rate=1.0)[:10] == make(name, 3, jobs=10, rate=1.0)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("rate", [0.03, 0.5, 7.0])
def test_another_rate_scales_the_arrivals_exactly_and_nothing_else(name: str, rate: float) -> None:
    unit, other = make(name, 3, jobs=30, rate=1.0), make(name, 3, jobs=30, rate=rate)
    assert [job.arrival_s for job in other] == [job.arrival_s / rate for job in unit]
    assert [replace(job, arrival_s=0.0) for job in other] == [replace(job, arrival_s=0.0) for job in unit]


def test_arrivals_are_a_poisson_process_that_starts_at_once() -> None:
    arrivals = [job.arrival_s for job in infercept(5, jobs=5000, rate=0.5)]
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert arrivals[0] == 0
    assert min(gaps) >= 0
    assert statistics.fmean(gaps) == pytest.approx(2.0, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("name", WORKLOADS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), limit=st.one_of(st.integers(400, 3000), st.integers(400, 200_000)))
def test_contexts_fit_any_limit(name: str, seed: int, limit: int) -> None:
    jobs = make(name, seed, jobs=12, rate=1.0, context_limit=limit)
    assert len({job.id for job in jobs}) == 12
    for job in jobs:
        _check(job, limit)
    shared = {(job.kind, job.shared_tokens) for job in jobs}
    assert len(shared) == len({kind for kind, _ in shared})


def test_ten_thousand_jobs_take_seconds() -> None:
    start = time.process_time()
    infercept(1, jobs=10_000, rate=1.0)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("name", WORKLOADS)
def test_impossible_arguments_are_refused(name: str) -> None:
    with pytest.raises(WorkloadError, match="at least 400"):
        make(name, 1, jobs=1, rate=1.0, context_limit=399)
    with pytest.raises(WorkloadError, match="at least 1 job"):
        make(name, 1, jobs=0, rate=1.0)
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(WorkloadError, match="rate above 0"):
            make(name, 1, jobs=1, rate=rate)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WorkloadError, match="expected one of infercept, coding, mixed"):
        make("batch", 1, jobs=1, rate=1.0)


# --- InferCept ----------------------------------------------------------------------------------


def _of(category: Category, limit: int | None) -> list[SimJob]:
    return [job for job in _many("infercept", limit) if job.kind == category.name]


def test_categories_are_drawn_equally() -> None:
    for category in CATEGORIES:
        assert len(_of(category, None)) == pytest.approx(4000, rel=0.06)


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda category: category.name)
def test_published_means_and_spreads_are_met(category: Category) -> None:
    """Means within 4 %, standard deviations within 12 %, where the limit does not cut."""
    jobs = _of(category, _ROOMY)
    figures: list[tuple[list[float], tuple[float, float]]] = [
        (_waits(jobs), category.duration_s),
        ([len(job.calls) - 1 for job in jobs], category.calls),
        ([job.context_tokens for job in jobs], category.context_tokens),
    ]
    for drawn, (mean, sd) in figures:
        assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.04)
        assert statistics.pstdev(drawn) == pytest.approx(sd, rel=0.12)
    assert min(len(job.calls) for job in jobs) >= 2
    assert {call.tool for job in jobs for call in job.calls[:-1]} == {category.tool}


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda category: category.name)
def test_the_limit_of_infercept_cuts_contexts_but_neither_calls_nor_waits(category: Category) -> None:
    jobs = _of(category, None)
    assert max(job.context_tokens for job in jobs) == 2048
    assert statistics.fmean(len(job.calls) - 1 for job in jobs) == pytest.approx(category.calls[0], rel=0.04)
    assert statistics.fmean(_waits(jobs)) == pytest.approx(category.duration_s[0], rel=0.04)
    if category.name == "ve":
        assert statistics.fmean(job.context_tokens == 2048 for job in jobs) > 0.8


def _recomputed(job: SimJob, batch: int) -> tuple[float, float]:
    """Seconds of forward time: for recomputing the context at every return, and for all else."""
    prefill_s, step_s = 0.0463e-3, 10e-3
    again = past = 0
    for place, call in enumerate(job.calls):
        again += past if place else 0
        past += call.new_tokens + call.output_tokens
    outputs = sum(call.output_tokens for call in job.calls)
    return again * prefill_s, past * prefill_s + outputs * step_s / batch


def test_discarding_at_every_return_costs_what_infercept_measured() -> None:
    """37-40 % of forward time: of a job at 30 in a step, of the summed time at 15."""

    def shares(batch: int) -> tuple[float, float]:
        costs = [_recomputed(job, batch) for job in _many("infercept")]
        summed = sum(again for again, _ in costs) / sum(again + rest for again, rest in costs)
        return statistics.fmean(again / (again + rest) for again, rest in costs), summed

    per_job, summed = shares(30)
    assert 0.35 < per_job < 0.42
    assert 0.50 < summed < 0.58
    assert 0.35 < shares(15)[1] < 0.42


def test_alfworld_makes_many_calls_with_short_outputs() -> None:
    outputs = {
        category.name: statistics.fmean(
            call.output_tokens for job in _of(category, None) for call in job.calls
        )
        for category in CATEGORIES
    }
    assert min(outputs, key=lambda name: outputs[name]) == "ve"
    assert outputs["ve"] < 60


# --- coding agents ------------------------------------------------------------------------------


def test_coding_agents_have_the_recorded_lengths() -> None:
    jobs = _many("coding")
    assert statistics.fmean(len(job.calls) for job in jobs) == pytest.approx(50.4, rel=0.04)
    assert statistics.pstdev(len(job.calls) for job in jobs) == pytest.approx(6, rel=0.2)
    assert statistics.fmean(job.calls[0].new_tokens for job in jobs) == pytest.approx(1770, rel=0.05)
    assert statistics.fmean(job.context_tokens for job in jobs) == pytest.approx(22_300, rel=0.04)
    outputs = [call.output_tokens for job in jobs for call in job.calls]
    assert statistics.median(outputs) == pytest.approx(80, rel=0.05)
    assert statistics.fmean(outputs) == pytest.approx(167, rel=0.06)
    results = [call.new_tokens for job in jobs for call in job.calls[1:]]
    assert statistics.median(results) == pytest.approx(122, rel=0.05)
    assert statistics.fmean(results) == pytest.approx(247, rel=0.06)


@pytest.mark.parametrize("limit", [None, 8000, 2000])
def test_coding_tools_have_the_recorded_tail_at_any_context(limit: int | None) -> None:
    waits = sorted(_waits(_many("coding", limit)), reverse=True)
    assert statistics.median(waits) == pytest.approx(0.063, rel=0.2)
    assert statistics.fmean(waits) == pytest.approx(0.645, rel=0.2)
    assert sum(waits[: len(waits) * 3 // 100]) / sum(waits) == pytest.approx(0.75, abs=0.06)
    assert 60 < waits[0] <= 120.2


def test_verbs_have_the_recorded_means() -> None:
    waits: dict[str, list[float]] = {}
    for job in _many("coding"):
        for call in job.calls[:-1]:
            waits.setdefault(call.tool, []).append(call.tool_s)
    recorded = {"sed": 0.054, "grep": 0.061, "cat": 0.149, "git": 0.084, "find": 0.152, "pip": 4.4}
    for name, mean in recorded.items():
        assert statistics.fmean(waits[f"bash:{name}"]) == pytest.approx(mean, rel=0.2)
    assert max(waits, key=lambda tool: len(waits[tool])) == "bash:sed"


def test_a_smaller_context_takes_turns_first_and_then_text() -> None:
    for limit, turns, median_output in ((8000, 13.4, 80), (4000, 6.6, 80), (2000, 6.6, 40)):
        jobs = _many("coding", limit)
        outputs = [call.output_tokens for job in jobs for call in job.calls]
        assert statistics.fmean(len(job.calls) for job in jobs) == pytest.approx(turns, rel=0.1)
        assert statistics.median(outputs) == pytest.approx(median_output, rel=0.1)
    assert coding(1, jobs=9, rate=1.0, context_limit=50_000) == coding(
        1, jobs=9, rate=1.0, context_limit=200_000
    )


def test_mixed_takes_one_and_the_other_in_turn() -> None:
    jobs = mixed(2, jobs=40, rate=1.0)
    assert all((job.kind == "coding") == bool(index % 2) for index, job in enumerate(jobs))
    assert jobs[1] == coding(2, jobs=2, rate=1.0)[1]


# --- heavy tails --------------------------------------------------------------------------------


def test_heavy_tail_replaces_a_share_of_the_waits_only() -> None:
    jobs = infercept(1, jobs=3000, rate=1.0)
    heavy = heavy_tail(jobs, 1, 0.1, 5.0)
    assert heavy == heavy_tail(jobs, 1, 0.1, 5.0)
    assert heavy != heavy_tail(jobs, 2, 0.1, 5.0)
    assert heavy[:100] == heavy_tail(jobs[:100], 1, 0.1, 5.0)
    pairs = list(zip(_waits(jobs), _waits(heavy), strict=True))
    replaced = [after / before for before, after in pairs if after != before]
    assert len(replaced) / len(pairs) == pytest.approx(0.1, rel=0.1)
    # A Pareto distribution of shape 1.5 has its median at 2^(1 / 1.5) times its least value.
    assert min(replaced) >= 5.0
    assert statistics.median(replaced) == pytest.approx(5 * 2 ** (1 / 1.5), rel=0.1)
    assert max(_waits(heavy)) <= 3600
    assert statistics.fmean(_waits(heavy)) > 1.5 * statistics.fmean(_waits(jobs))
    for before, after in zip(jobs, heavy, strict=True):
        _check(after, 2048)
        assert replace(after, calls=before.calls) == before


def test_heavy_tail_of_nothing_and_of_everything() -> None:
    jobs = coding(1, jobs=5, rate=1.0)
    assert heavy_tail(jobs, 1, 0.0, 5.0) == jobs
    changed = zip(_waits(jobs), _waits(heavy_tail(jobs, 1, 1.0, 5.0)), strict=True)
    assert all(after > before for before, after in changed)
    for share, factor in ((-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (0.5, math.inf), (math.nan, 1.0)):
        with pytest.raises(WorkloadError, match="heavy_tail"):
            heavy_tail(jobs, 1, share, factor)


# --- recorded conversations ---------------------------------------------------------------------


def _user(name: str, text: str) -> dict[str, Any]:
    return {
        "conversation_id": name,
        "turn": 1,
        "role": "user",
        "system": "s" * 40,
        "tools": [],
        "content": text,
    }


def _assistant(name: str, turn: int, command: str, thought: str = "hm") -> dict[str, Any]:
    arguments = json.dumps({"command": command})
    calls = [{"id": "1", "type": "function", "function": {"name": "bash", "arguments": arguments}}]
    return {
        "conversation_id": name,
        "turn": turn,
        "role": "assistant",
        "reasoning_content": thought,
        "tool_calls": calls,
    }


def _tool(name: str, turn: int, seconds: float, text: str) -> dict[str, Any]:
    return {
        "conversation_id": name,
        "turn": turn,
        "role": "tool",
        "tool_results": [{"content": text}],
        "delay_seconds": seconds,
    }


def _conversation(name: str, turns: int) -> list[dict[str, Any]]:
    rows = [_user(name, f"Mend {name}. " + "x" * 400)]
    for turn in range(turns):
        rows.append(_assistant(name, 2 * turn + 2, f"cd /src && grep -n {turn} *.py", "think " * 20))
        rows.append(_tool(name, 2 * turn + 3, 0.5 + turn, "y" * 300))
    return rows


def _write(path: Path, rows: Sequence[object]) -> Path:
    file = path / "trace.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return file


def test_a_trace_is_read_as_lengths_and_waits(tmp_path: Path) -> None:
    first = [
        _user("a", "Mend it."),
        _assistant("a", 2, "python3 -m pytest -q"),
        _tool("a", 3, 1.5, "z" * 96),
        _assistant("a", 4, "echo done"),
        _tool("a", 5, 9.0, "nobody reads this"),
    ]
    file = _write(tmp_path, [*first, "", _user("b", "Mend that."), _assistant("b", 2, "ls")])
    jobs = trace(file, 1, jobs=2, rate=1.0)
    job = max(jobs, key=lambda job: len(job.calls))
    # 40 characters of system prompt and 8 of task; an empty list of tools counts for nothing.
    assert job.calls[0].new_tokens == 12
    assert (job.calls[0].tool, job.calls[0].tool_s) == ("bash:pytest", 1.5)
    text = "hm" + json.dumps(first[1]["tool_calls"])
    assert job.calls[0].output_tokens == round(len(text) / 4)
    assert job.calls[1].new_tokens == round(len(json.dumps(first[2]["tool_results"])) / 4)
    assert (len(job.calls), job.calls[1].tool, job.calls[1].tool_s) == (2, "", 0.0)
    # "s" 40 times, then "Mend " and "t" or "i" to tell them apart.
    assert {job.shared_tokens for job in jobs} == {45 // 4}
    assert {job.kind for job in jobs} == {"trace"}


def test_a_trace_comes_in_an_order_of_the_seed_each_once_before_any_twice(tmp_path: Path) -> None:
    file = _write(tmp_path, [row for place in range(8) for row in _conversation(f"c{place}", 3 + place)])

    def lengths(seed: int, jobs: int) -> list[int]:
        return [len(job.calls) for job in trace(file, seed, jobs=jobs, rate=1.0)]

    assert sorted(lengths(1, 8)) == list(range(3, 11))
    assert lengths(1, 8) != lengths(2, 8)
    assert lengths(1, 50)[:8] == lengths(1, 8)
    assert lengths(1, 50)[:20] == lengths(1, 20)
    assert set(lengths(1, 50)[8:]) <= set(range(3, 11))
    slow, fast = (trace(file, 1, jobs=9, rate=rate) for rate in (1.0, 4.0))
    assert [job.arrival_s / 4 for job in slow] == [job.arrival_s for job in fast]


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(400, 6000), seed=st.integers(0, 1000))
def test_a_trace_fits_any_limit(tmp_path_factory: pytest.TempPathFactory, limit: int, seed: int) -> None:
    rows = [row for place, turns in enumerate((1, 2, 9, 40)) for row in _conversation(f"c{place}", turns)]
    file = _write(
        tmp_path_factory.mktemp("trace"), [*rows, _user("long", "w" * 9000), _assistant("long", 2, "ls")]
    )
    for job in trace(file, seed, jobs=7, rate=1.0, context_limit=limit):
        _check(job, limit)


def test_a_shrunk_trace_keeps_turns_from_all_over_the_job(tmp_path: Path) -> None:
    file = _write(tmp_path, _conversation("a", 60))
    whole, half = (trace(file, 1, jobs=1, rate=1.0, context_limit=n)[0] for n in (100_000, 5000))
    assert half.context_tokens == pytest.approx(whole.context_tokens / 2, rel=0.2)
    assert half.calls[0] == whole.calls[0]
    assert half.calls[-2].tool_s > 50


def test_other_shapes_of_a_trace_are_understood(tmp_path: Path) -> None:
    rows = [
        {"conversation_id": "a", "turn": 1, "role": "user", "content": "Hello\u2028there"},
        {"conversation_id": "a", "turn": 2, "role": "assistant", "content": "```bash\ngit status\n```"},
        {"conversation_id": "a", "turn": 3, "role": "tool", "content": "clean", "delay_seconds": 2},
        {"conversation_id": "a", "turn": 4, "role": "assistant", "content": "What else?"},
        {"conversation_id": "a", "turn": 5, "role": "user", "content": "That", "delay_seconds": 7},
        {"conversation_id": "a", "turn": 6, "role": "user", "content": " is all"},
        {
            "conversation_id": "a",
            "turn": 7,
            "role": "assistant",
            "tool_calls": [{"function": {"name": "web"}}],
        },
        {"conversation_id": "a", "turn": 8, "role": "tool", "content": "1", "delay_seconds": 1},
        {"conversation_id": "a", "turn": 9, "role": "tool", "content": "2", "delay_seconds": 2},
        {
            "conversation_id": "a",
            "turn": 10,
            "role": "assistant",
            "tool_calls": [{"function": {"name": "bash", "arguments": "{broken"}}],
        },
        {"conversation_id": "a", "turn": 11, "role": "tool", "content": "?", "delay_seconds": 0},
        {"conversation_id": "a", "turn": 12, "role": "assistant", "content": "Bye"},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (job,) = trace(file, 1, jobs=1, rate=1.0)
    expected = [("bash:git", 2), ("user", 7), ("web", 3), ("bash", 0), ("", 0)]
    assert [(call.tool, call.tool_s) for call in job.calls] == expected
    assert job.shared_tokens == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("grep -n x *.py | head", "grep"),
        ("cd /src && PYTHONPATH=. python3.11 -m pytest -q", "pytest"),
        ("python -m", "python"),
        ("python3 - <<'EOF'\nprint(1)\nEOF", "python"),
        ("timeout 60s pip3 install x", "pip"),
        ("sudo env A=1 /usr/bin/make -j", "make"),
        ("# look\nls -la", "ls"),
        ("cd /src", ""),
        ("", ""),
        ("$(which python) x", ""),
    ],
)
def test_the_verb_of_a_shell_command(command: str, expected: str) -> None:
    assert verb(command) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected a JSON object, not list"),
        ({"turn": 1, "role": "user", "content": "x"}, "conversation_id is None"),
        ({"conversation_id": "a", "turn": "1", "role": "user"}, "turn is '1': expected a whole number"),
        ({"conversation_id": "a", "turn": 4, "role": "system"}, "expected one of user, assistant, tool"),
        ({"conversation_id": "a", "turn": 4, "role": "user"}, "no text in a row of role user"),
        (
            {"conversation_id": "z", "turn": 4, "role": "tool", "content": "x", "delay_seconds": 1},
            "expected user",
        ),
        (_tool("a", 4, -1.0, "x"), "delay_seconds is -1.0: expected a number of seconds"),
        (_tool("a", 4, math.nan, "x"), "delay_seconds is nan"),
        ({"conversation_id": "a", "turn": 4, "role": "tool", "content": "x"}, "delay_seconds is None"),
        (_tool("a", 2, 1.0, "x"), "turn 2 after turn 2: expected a later one"),
        (_assistant("a", 4, "ls"), "assistant twice in a row"),
        ({**_assistant("a", 4, "ls"), "tool_calls": [{}]}, "expected a list of objects with function.name"),
        (
            {**_assistant("a", 4, "ls"), "tool_calls": {"a": 1}},
            "expected a list of objects with function.name",
        ),
    ],
)
def test_a_fault_is_named_with_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    file = _write(tmp_path, [_user("a", "Mend it."), "", _assistant("a", 2, "ls"), row])
    with pytest.raises(WorkloadError, match="line 4: ") as raised:
        trace(file, 1, jobs=1, rate=1.0)
    assert str(raised.value).startswith(f"{file}, ")
    assert message in str(raised.value)


def test_files_without_conversations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.jsonl: cannot be read: No such file"):
        trace(tmp_path / "none.jsonl", 1, jobs=1, rate=1.0)
    with pytest.raises(WorkloadError, match="line 1: no conversation"):
        trace(_write(tmp_path, [""]), 1, jobs=1, rate=1.0)
    with pytest.raises(WorkloadError, match="line 1: conversation 'a' has no answer"):
        trace(_write(tmp_path, [_user("a", "Mend it.")]), 1, jobs=1, rate=1.0)
    with pytest.raises(WorkloadError, match="line 2: a tool row before the first answer"):
        trace(_write(tmp_path, [_user("a", "Mend it."), _tool("a", 2, 1.0, "x")]), 1, jobs=1, rate=1.0)
    (tmp_path / "trace.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(WorkloadError, match="not UTF-8"):
        trace(tmp_path / "trace.jsonl", 1, jobs=1, rate=1.0)


@pytest.mark.skipif(_TRACE is None, reason="ASTRAEA_TRACE names no recorded trace")
def test_the_recorded_trace_has_its_published_figures() -> None:
    jobs = trace(Path(_TRACE or ""), 1, jobs=20, rate=1.0)
    assert statistics.fmean(len(job.calls) for job in jobs) == pytest.approx(50.4, abs=0.1)
    assert statistics.fmean(job.context_tokens for job in jobs) == pytest.approx(22_300, rel=0.01)
    assert statistics.fmean(job.calls[0].new_tokens for job in jobs) == pytest.approx(1770, rel=0.01)
    outputs = [call.output_tokens for job in jobs for call in job.calls]
    assert statistics.fmean(outputs) == pytest.approx(167, rel=0.01)
    waits = _waits(jobs)
    assert statistics.fmean(waits) == pytest.approx(0.645, rel=0.01)
    assert {"bash:sed", "bash:grep", "bash:pytest", "bash:pip"} <= {
        call.tool for job in jobs for call in job.calls
    }
    for limit in (400, 2048, 8192):
        for job in trace(Path(_TRACE or ""), 1, jobs=30, rate=1.0, context_limit=limit):
            _check(job, limit)
