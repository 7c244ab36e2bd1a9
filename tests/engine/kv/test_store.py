"""Parked states in RAM and on disk, with a real context behind them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Model, Tokens
from astraea_local.engine.kv import disk
from astraea_local.engine.kv.arena import BufferArena
from astraea_local.engine.kv.disk import DiskStore
from astraea_local.engine.kv.fetches import Fetches
from astraea_local.engine.kv.files import ModelIdentity
from astraea_local.engine.kv.spill import DiskTier
from astraea_local.engine.kv.store import ParkedStore, Parking
from tests.engine.kv.conversation import Rig, rig, tokens
from tests.engine.kv.states import no_space_left

IDENTITY = ModelIdentity("f" * 32, "f16", "f16", False, "rows", "any", "0")
NEXT = tokens(9, 1)
FORMS = [("f16", "on"), ("q8_0", "on"), ("f16", "off")]
"""Element type of the KV, flash attention."""


class Bench:
    """A store over a small context, with a clock that stands still until it is moved."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        *,
        ram: int,
        disk: int,
        unified: bool = False,
        form: tuple[str, str] = ("f16", "on"),
        rows: bool = True,
    ) -> None:
        kv_type, flash = form
        self.rig: Rig = rig(model, unified=unified, kv_type=kv_type, flash=flash, rows=rows)
        self.now = 1000.0
        self.notes: list[str] = []
        self.values: dict[int, float] = {}
        arena = BufferArena(ram)
        self.rig.transfer._arena = arena
        tier = None
        if disk:
            tier = DiskTier(
                DiskStore(folder, IDENTITY, disk), arena, note=self.notes.append, clock=lambda: self.now
            )
            tier.open()
        self.store = ParkedStore(
            arena,
            by_rows=rows,
            value=lambda part: self.values.get(len(part.tokens), 1.0),
            note=self.notes.append,
            disk=tier,
            clock=lambda: self.now,
        )
        self.fetches = Fetches(self.store)

    def talk(self, seq: int, what: Tokens) -> None:
        self.rig.compute(seq, what)

    def park(self, seq: int, what: Tokens, job: str, most: int | None = None, ahead: bool = False) -> Parking:
        self.now += 1.0
        return self.store.park(self.rig.transfer, seq, what, job, most=most, ahead=ahead)

    def settle(self, behind_s: float = 0.0) -> None:
        """Writes behind, and waits until the disk has done everything."""
        self.store.tick(behind_s)
        assert self.store.disk is not None
        while self.store.disk.busy:
            self.store.tick(behind_s)

    def back(self, what: Tokens, seq: int = 0) -> bool:
        """Restores the longest known prefix into an emptied context; whether all of it came."""
        part, length = self.store.find(what)
        if part is None:
            return False
        while (pieces := self.fetches.fetch("test", part, length)) is None:
            self.store.tick(1e9)
            if not self.store.knows(part):
                return False
        self.rig.context.clear()
        loaded = self.rig.transfer.load(seq, pieces)
        self.fetches.end("test")
        return loaded and pieces[-1].end == len(what)

    def close(self) -> None:
        if self.store.disk is not None:
            self.store.disk.close(5.0)
        self.rig.close()


MakeBench = Callable[..., Bench]


@pytest.fixture(scope="module")
def tiny(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Model]:
    with Model(tiny_path("tiny")) as model:
        yield model


@pytest.fixture
def bench(tiny: Model, tmp_path: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(model: Model = tiny, *, ram: int = 1 << 24, disk: int = 1 << 28, **more: Any) -> Bench:
        made.append(Bench(model, tmp_path / "kv", ram=ram, disk=disk, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module", params=["tiny-swa", "tiny-recurrent", "tiny-hybrid"])
def other(request: pytest.FixtureRequest, tiny_path: Callable[[ShapeName], Path]) -> Iterator[Model]:
    """Models whose states cannot be taken apart."""
    with Model(tiny_path(request.param)) as model:
        yield model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unified", [False, True])
def test_a_state_survives_ram_disk_and_a_new_server(
    bench: MakeBench, unified: bool, form: tuple[str, str]
) -> None:
    """Bitwise, through every tier and the files."""
    first = bench(unified=unified, form=form)
    talk = tokens(1, 180)
    first.talk(0, talk[:100])
    assert first.park(0, talk[:100], "agent") is Parking.DONE
    first.talk(0, talk[100:])
    assert first.park(0, talk, "agent") is Parking.DONE
    expected = first.rig.compute(0, NEXT)
    assert first.back(talk, 1)
    assert np.array_equal(first.rig.compute(1, NEXT), expected)
    first.settle()
    assert first.store.disk_bytes == first.store.ram_bytes > 0
    second = bench(unified=not unified, form=form)
    assert second.store.ram_bytes == 0
    assert second.store.tier_of("agent")[:2] == ("disk", 180)
    assert second.back(talk, 2)
    assert np.array_equal(second.rig.compute(2, NEXT), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unified", [False, True])
def test_what_two_share_is_one_file_and_comes_back_to_both(
    bench: MakeBench, unified: bool, form: tuple[str, str]
) -> None:
    """Bitwise; the second one's own end hangs from the middle of the first one's state."""
    first = bench(unified=unified, form=form)
    context = first.rig.context
    trunk = tokens(1, 150)
    branch = np.concatenate([trunk[:100], tokens(2, 60)])
    first.talk(0, trunk)
    first.park(0, trunk, "a")
    # The common tokens are computed once: another split of them would differ in rounding.
    if unified:
        context.seq_cp(0, 1, 0, 100)
    else:
        context.seq_cp(0, 1)
        context.seq_rm(1, 100, -1)
    first.talk(1, branch[100:])
    first.park(1, branch, "b")
    expected = [first.rig.compute(seq, NEXT) for seq in (0, 1)]
    first.settle()
    assert [part.start for part in first.store.tree] == [0, 100]
    second = bench(unified=not unified, form=form)
    for talk, logits in zip((trunk, branch), expected, strict=True):
        assert second.back(talk, 2)
        assert np.array_equal(second.rig.compute(2, NEXT), logits)


@pytest.mark.parametrize("unified", [False, True])
def test_states_of_other_models_survive_a_new_server(other: Model, bench: MakeBench, unified: bool) -> None:
    """Bitwise and whole; a shorter or longer prompt finds what it can use, or nothing."""
    first = bench(other, unified=unified, rows=False)
    talk = tokens(1, 180)
    first.talk(0, talk)
    assert first.park(0, talk, "agent") is Parking.DONE
    expected = first.rig.compute(0, NEXT)
    first.settle()
    second = bench(other, unified=unified, rows=False)
    assert second.back(talk, 1)
    assert np.array_equal(second.rig.compute(1, NEXT), expected)
    assert second.store.find(talk[:150]) == (None, 0)
    assert second.store.find(np.concatenate([talk, NEXT]))[1] == 180


def test_only_new_tokens_are_copied_and_shared_ones_stored_once(bench: MakeBench) -> None:
    b = bench(disk=0)
    talk = tokens(1, 200)
    b.talk(0, talk[:150])
    b.park(0, talk[:150], "a")
    before = b.store.ram_bytes
    b.talk(0, talk[150:])
    b.park(0, talk, "a")
    per_token = before / 150
    assert b.store.ram_bytes - before < 1.2 * 50 * per_token + 1000
    other = np.concatenate([talk[:150], tokens(2, 10)])
    b.rig.context.seq_cp(0, 1)
    b.rig.context.seq_rm(1, 150, -1)
    b.talk(1, other[150:])
    before = b.store.ram_bytes
    b.park(1, other, "b")
    assert b.store.ram_bytes - before < 1.2 * 10 * per_token + 1000
    assert b.store.stats.shared_bytes > 100 * per_token
    assert b.park(1, other, "c") is Parking.DONE
    assert b.store.stats.parks == 3


def test_slices_add_up(bench: MakeBench) -> None:
    b = bench(disk=0, unified=True)
    talk = tokens(1, 200)
    b.talk(0, talk)
    done = [b.park(0, talk, "a", most=60) for _ in range(4)]
    assert done == [Parking.MORE, Parking.MORE, Parking.MORE, Parking.DONE]
    expected = b.rig.compute(0, NEXT)
    assert b.back(talk, 1)
    assert np.array_equal(b.rig.compute(1, NEXT), expected)


def test_the_least_worth_gives_way_when_ram_is_full(bench: MakeBench) -> None:
    b = bench(ram=200_000, disk=0)
    b.values = {200: 5.0, 190: 1.0, 180: 5.0, 170: 5.0}
    for seq, count in enumerate((200, 190, 180, 170)):
        b.talk(seq, tokens(seq, count))
        assert b.park(seq, tokens(seq, count), f"job-{seq}") is Parking.DONE
    kept = {job for job, _part, _length in b.store.tree.jobs()}
    assert "job-1" not in kept
    assert "job-3" in kept
    assert b.store.stats.evictions >= 1
    assert b.store.arena.allocated <= 200_000


def test_what_is_on_disk_gives_its_ram_without_loss(bench: MakeBench) -> None:
    b = bench(ram=150_000)
    for seq in range(4):
        b.talk(seq, tokens(seq, 200))
        assert b.park(seq, tokens(seq, 200), f"job-{seq}") is Parking.DONE
        b.settle()
    assert b.store.stats.evictions == 0
    assert {b.store.tier_of(f"job-{seq}")[0] for seq in range(4)} == {"ram", "disk"}
    assert all(b.back(tokens(seq, 200)) for seq in range(4))


def test_no_budget_means_no_parking(bench: MakeBench) -> None:
    b = bench(ram=0, disk=0)
    b.talk(0, tokens(1, 100))
    assert b.park(0, tokens(1, 100), "a") is Parking.FAILED
    assert b.store.covered(tokens(1, 100)) == 0
    assert not b.store.enabled


def test_a_sunk_state_leaves_ram_as_soon_as_it_is_on_disk(bench: MakeBench) -> None:
    b = bench()
    b.talk(0, tokens(1, 100))
    b.park(0, tokens(1, 100), "a")
    b.store.sink("a")
    b.settle(behind_s=1e9)
    b.store.tick(1e9)
    assert b.store.tier_of("a")[0] == "disk"
    assert b.store.ram_bytes == 0
    assert b.back(tokens(1, 100))


@pytest.mark.parametrize("fault", ["truncated", "flipped", "deleted"])
def test_a_damaged_file_costs_its_state_and_nothing_else(bench: MakeBench, fault: str) -> None:
    b = bench()
    for seq in (0, 1):
        b.talk(seq, tokens(seq, 100))
        b.park(seq, tokens(seq, 100), f"job-{seq}")
    b.settle()
    part, _length = b.store.find(tokens(0, 100))
    assert part is not None
    assert b.store.folder is not None
    file = b.store.folder / f"{part.id}.kv"
    match fault:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-10])
        case "flipped":
            data = bytearray(file.read_bytes())
            data[-1000] ^= 1
            file.write_bytes(data)
        case "deleted":
            file.unlink()
    b.store.relieve_ram(1 << 30)
    assert b.store.ram_bytes == 0
    assert not b.back(tokens(0, 100))
    assert b.store.stats.failures == 1
    assert any("computed again" in note for note in b.notes)
    assert b.store.tier_of("job-0")[0] == "none"
    assert b.back(tokens(1, 100))


def test_a_full_disk_is_said_once_and_costs_nothing_in_ram(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    no_space_left(monkeypatch)
    for seq in (0, 1):
        b.talk(seq, tokens(seq, 100))
        b.park(seq, tokens(seq, 100), f"job-{seq}")
        b.settle()
    assert b.notes == ["KV states are not written to disk: No space left on device"]
    assert b.store.disk is not None
    assert b.store.disk.stats.failures == 1
    assert b.store.disk_bytes == 0
    assert all(b.back(tokens(seq, 100)) for seq in (0, 1))
    monkeypatch.undo()
    # The files' own pause goes by the real clock.
    monkeypatch.setattr(disk, "_RETRY_S", 0.0)
    b.now += 100.0
    b.settle()
    assert b.store.disk_bytes == b.store.ram_bytes


def test_the_disk_budget_keeps_what_is_worth_more(bench: MakeBench) -> None:
    b = bench(disk=140_000)
    b.values = {200: 1.0, 190: 5.0, 180: 5.0}
    for seq, count in enumerate((200, 190, 180)):
        b.talk(seq, tokens(seq, count))
        b.park(seq, tokens(seq, count), f"job-{seq}")
        b.settle()
    on_disk = {len(part.tokens) for part in b.store.tree if part.on_disk}
    assert on_disk == {190, 180}
    assert b.store.tier_of("job-0")[0] == "ram"


def test_a_copy_ahead_of_need_takes_the_room_of_less_only(bench: MakeBench) -> None:
    """Two states that do not fit both must not take turns for ever."""
    b = bench(ram=70_000, disk=0)
    b.values = {100: 1.0, 101: 1.0, 102: 9.0}
    for seq, count in enumerate((100, 101, 102)):
        b.talk(seq, tokens(seq, count))
    assert b.park(0, tokens(0, 100), "a", ahead=True) is Parking.DONE
    assert b.park(1, tokens(1, 101), "b", ahead=True) is Parking.FAILED
    assert b.store.tier_of("a")[0] == "ram"
    assert b.park(2, tokens(2, 102), "c", ahead=True) is Parking.DONE
    assert b.store.tier_of("a")[0] == "none"
    assert b.park(1, tokens(1, 101), "b") is Parking.DONE


def test_what_a_new_part_hangs_from_is_not_given_up_for_it(bench: MakeBench) -> None:
    b = bench(ram=70_000, disk=0)
    b.talk(0, tokens(1, 100))
    assert b.park(0, tokens(1, 100), "a") is Parking.DONE
    b.talk(0, tokens(2, 100))
    longer = np.concatenate([tokens(1, 100), tokens(2, 100)])
    b.park(0, longer, "a")
    assert all(part.parent is None or b.store.knows(part.parent) for part in b.store.tree)
    assert b.store.tier_of("a")[1] == b.store.covered(longer)


def test_dropping_a_job_keeps_what_others_share(bench: MakeBench) -> None:
    b = bench(disk=0)
    talk = tokens(1, 120)
    b.talk(0, talk)
    b.park(0, talk, "a")
    longer = np.concatenate([talk, tokens(2, 30)])
    b.talk(0, tokens(2, 30))
    b.park(0, longer, "b")
    assert b.store.drop_job("a") == 120
    assert b.store.covered(longer) == 150
    assert b.store.drop_job("b") == 150
    assert len(b.store.tree) == 0
    assert b.store.arena.idle_bytes == b.store.arena.allocated


def test_a_state_that_is_forgotten_while_it_is_written_leaks_nothing(bench: MakeBench) -> None:
    b = bench()
    b.talk(0, tokens(1, 150))
    b.park(0, tokens(1, 150), "a")
    b.store.tick(0.0)
    b.store.drop_job("a")
    b.settle()
    assert len(b.store.tree) == 0 or b.store.drop_job("a") == 0
    b.settle()
    assert b.store.arena.idle_bytes + b.store.ram_bytes <= b.store.arena.allocated
