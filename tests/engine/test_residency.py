"""Where KV goes while jobs wait, on a real context."""

import time
from pathlib import Path

import pytest

from astraea_local.scheduler.distribution import Distribution
from tests.engine.harness import Harness, MakeHarness, prompt

LAYOUTS = ["per_slot", "unified"]


def _settle(h: Harness, ticks: int = 50) -> None:
    for _ in range(ticks):
        h.core.idle()
    store = h.core.residency.store
    while store.disk is not None and store.disk.busy:
        h.core.idle()


def _again(
    h: Harness, job: str, seed: int, length: int, first: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """The job comes back with a longer prompt; cached tokens, and the output."""
    back = h.ask(job, [*prompt(seed, length), *first, 7, 8, 9])
    return back.cached_tokens, back.output


@pytest.mark.parametrize("layout", LAYOUTS)
def test_idle_states_are_copied_while_nothing_runs(harness: MakeHarness, layout: str) -> None:
    """So that giving their place away later takes no time."""
    h = harness(kv__layout=layout)
    h.ask("a", prompt(1, 100))
    h.ask("b", prompt(2, 100))
    _settle(h)
    residency = h.core.residency
    assert residency.store.tier_of("a")[:2] == ("ram", 107)
    assert residency.store.tier_of("b")[:2] == ("ram", 107)
    assert {s.job for s in h.core.table.idle()} == {"a", "b"}
    assert not residency.unfinished


@pytest.mark.parametrize("policy", ["keep", "drop", "lru"])
def test_the_other_policies_copy_nothing_ahead(harness: MakeHarness, policy: str) -> None:
    h = harness(retention__policy=policy)
    h.ask("a", prompt(1, 100))
    _settle(h)
    assert h.core.residency.store.stats.parks == 0
    assert bool(h.core.table.idle()) == (policy != "drop")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", ["adaptive", "keep", "drop", "lru", "paper"])
def test_every_policy_gives_right_answers(harness: MakeHarness, layout: str, policy: str) -> None:
    """Whatever is kept, moved or dropped, the text is that of a server with room for everybody."""
    # Without flash attention a prompt that is computed in other chunks gives the same bits.
    exact = {"kv__layout": layout, "model__flash_attention": "off"}
    crowded = harness(context__slots=2, context__size=512, retention__policy=policy, **exact)
    roomy = harness(context__slots=8, context__size=2048, **exact)
    for h in (crowded, roomy):
        firsts = [h.ask(f"job{i}", prompt(i, 90)).output for i in range(5)]
        if h is crowded:
            expected = firsts
    assert firsts == expected
    for i, first in enumerate(expected):
        cached, output = _again(crowded, f"job{i}", i, 90, first)
        assert output == _again(roomy, f"job{i}", i, 90, first)[1]
        if policy in ("adaptive", "lru"):
            assert cached >= 90


def test_a_pinned_state_stays_in_its_slot(harness: MakeHarness) -> None:
    h = harness(context__slots=2, context__size=512)
    h.ask("mine", prompt(1, 100))
    h.core.residency.pin("mine", True)
    for seed in range(2, 8):
        h.ask(f"job{seed}", prompt(seed, 100))
        assert "mine" in {s.job for s in h.core.table.idle()}
    h.core.residency.pin("mine", False)
    for seed in range(8, 11):
        h.ask(f"job{seed}", prompt(seed, 100))
    assert "mine" not in {s.job for s in h.core.table.idle()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pins_lock_nobody_out(harness: MakeHarness, layout: str) -> None:
    """As after a resize, when what is pinned fills a context that was larger."""
    h = harness(context__slots=2, context__size=512, kv__layout=layout)
    for job in ("a", "b"):
        h.ask(job, prompt(ord(job), 180))
        h.core.residency.pin(job, True)
    assert h.ask("c", prompt(3, 240)).output_tokens == 8


def test_a_state_is_brought_back_before_its_job(harness: MakeHarness) -> None:
    """Its place was needed, is free again, and the tool is about to return."""
    h = harness(context__slots=1, context__size=512)
    residency = h.core.residency
    first = h.ask("a", prompt(1, 200))
    residency.expect("a", Distribution.of([0.3]))
    h.ask("b", prompt(2, 200))
    assert [s.job for s in h.core.table.idle()] == ["b"]
    assert residency.away["a"].back_at is not None
    residency.drop("b")
    deadline = time.monotonic() + 20
    while not residency.stats.prefetches and time.monotonic() < deadline:
        h.core.idle()
    assert [s.job for s in h.core.table.idle()] == ["a"]
    assert _again(h, "a", 1, 200, first.output)[0] >= 200


def test_parking_in_slices_holds_up_nobody_for_long_and_loses_nothing(harness: MakeHarness) -> None:
    """One token of time for moves in each step: a big state leaves over many steps while another decodes."""
    h = harness(context__slots=2, context__size=2048, kv__layout="unified", kv__max_stall_ms=0.001)
    first = h.ask("big", prompt(1, 900))
    alone = harness(context__slots=2, context__size=2048, kv__layout="unified")
    expected = alone.ask("other", prompt(2, 700), 200).output
    running = h.submit("other", prompt(2, 700), 200)
    h.run()
    assert h.finished(running).output == expected
    h.ask("third", prompt(3, 900))
    cached, output = _again(h, "big", 1, 900, first.output)
    assert cached >= 900
    reference = harness(context__slots=2, context__size=2048, kv__layout="unified")
    assert reference.ask("x", prompt(1, 900)).output == first.output
    assert output == _again(reference, "x", 1, 900, first.output)[1]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "deleted", "other version", "folder gone"])
def test_a_damaged_file_means_recomputing(harness: MakeHarness, tmp_path: Path, fault: str) -> None:
    """The right answer, a counter and a line in the event log."""
    exact = {"context__slots": 1, "context__size": 512, "model__flash_attention": "off"}
    h = harness(retention__disk_path=str(tmp_path / "kv"), retention__write_behind_s=0.0, **exact)
    first = h.ask("a", prompt(1, 200))
    _settle(h)
    store = h.core.residency.store
    assert store.folder is not None
    assert store.disk_bytes > 0
    h.core.residency.park_now("a")
    store.relieve_ram(1 << 30)
    assert store.tier_of("a")[0] == "disk"
    for file in store.folder.glob("*.kv"):
        data = bytearray(file.read_bytes())
        match fault:
            case "truncated":
                file.write_bytes(data[: len(data) // 2])
            case "flipped":
                data[len(data) // 2] ^= 4
                file.write_bytes(data)
            case "other version":
                data[8] ^= 0xFF
                file.write_bytes(data)
            case _:
                file.unlink()
    if fault == "folder gone":
        store.folder.rmdir()
    cached, output = _again(h, "a", 1, 200, first.output)
    assert cached == 0
    assert output == _again(harness(**exact), "x", 1, 200, first.output)[1]
    assert store.stats.failures == 1
    assert any("computed again" in event.text for event in h.core.log.lines)


def test_nothing_is_written_where_nothing_can_be(
    harness: MakeHarness, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder's parent is a file: everything goes on in RAM, with one line about it."""
    (tmp_path / "file").write_text("")
    h = harness(retention__disk_path=str(tmp_path / "file" / "kv"), retention__write_behind_s=0.0)
    first = h.ask("a", prompt(1, 200))
    _settle(h)
    h.core.residency.park_now("a")
    assert _again(h, "a", 1, 200, first.output)[0] >= 200
    assert sum("cannot be kept on disk" in record.message for record in caplog.records) == 1


def _seconds_pass(h: Harness, seconds: int) -> None:
    for _ in range(seconds):
        h.ahead_s += 1.01
        _settle(h, 5)


def test_what_is_parked_leaves_scarce_ram_for_the_disk(harness: MakeHarness, tmp_path: Path) -> None:
    h = harness(context__slots=2, retention__disk_path=str(tmp_path / "kv"), retention__write_behind_s=1e6)
    store = h.core.residency.store
    firsts = {job: h.ask(job, prompt(ord(job), 100)).output for job in "ab"}
    for job in firsts:
        h.core.residency.park_now(job)
    assert store.ram_bytes
    assert not store.disk_bytes
    h.core.pressure_changed({"ram": "high"})
    _seconds_pass(h, 20)
    assert store.ram_bytes == store.arena.allocated == 0
    assert store.tier_of("a")[0] == store.tier_of("b")[0] == "disk"
    h.core.pressure_changed({"ram": "low"})
    for job, first in firsts.items():
        assert _again(h, job, ord(job), 100, first)[0] >= 100


def test_without_a_disk_only_critical_ram_costs_states(harness: MakeHarness) -> None:
    h = harness(context__slots=2)
    residency = h.core.residency
    for job in "ab":
        h.ask(job, prompt(ord(job), 100))
        residency.park_now(job)
    held = residency.store.ram_bytes
    h.core.pressure_changed({"ram": "high"})
    _seconds_pass(h, 5)
    assert residency.store.ram_bytes == held
    h.core.pressure_changed({"ram": "critical"})
    _seconds_pass(h, 1)
    assert 0 < residency.store.ram_bytes < held
    _seconds_pass(h, 5)
    assert residency.store.arena.allocated == 0
