"""Three hundred jobs with whatever users, tools and machines do to them: nothing is lost, nothing leaks."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import ContextParams, Model
from astraea_local.engine.elastic import Elastic, Loaded, ResizeRefused
from astraea_local.engine.messages import Cancel, Failed, Finished
from astraea_local.engine.worker import context_params
from astraea_local.frame import PressureLevel
from astraea_local.profile import Profile, override
from tests.engine.harness import Harness, prompt

JOBS = 300
AT_ONCE = 12
_OFTEN = {
    "new": 20.0,
    "again": 30.0,
    "park": 8.0,
    "drop": 4.0,
    "pin": 3.0,
    "cancel": 6.0,
    "pressure": 3.0,
    "tool": 6.0,
    "resize": 1.5,
    "pause": 0.7,
    "relieve": 1.0,
}
_LEVELS: tuple[PressureLevel, ...] = ("low", "normal", "high", "critical")


class Soak(Harness):
    """A core with both tiers and a context of changing size, and jobs that come and go at random."""

    def __init__(self, path: Path, profile: Profile, seed: int) -> None:
        self.vocabulary = Model(path, vocab_only=True)
        super().__init__(Model(path), profile, self.vocabulary.vocab)
        self.loaded = Loaded(self.model, self.context)

        def params(model: Model, size: int, slots: int) -> ContextParams:
            sized = override(profile, {"context.size": size, "context.slots": slots})
            return context_params(sized, model.model_class, model.n_ctx_train)

        self.elastic = Elastic(self.core, self.loaded, load_model=lambda: Model(path), params_for=params)
        self.random = random.Random(seed)
        self.started = 0
        self.talks: dict[str, list[int]] = {}
        """What each job has said so far."""
        self.open: dict[int, str] = {}
        """Jobs by their segments that have not ended."""
        self.cancelled: set[int] = set()

    def close(self) -> None:
        self.elastic.flush(20)
        self.core.close()
        if not self.elastic.paused:
            self.loaded.close()
        self.vocabulary.close()

    def act(self) -> None:
        """One thing that happens from outside."""
        quiet = [job for job in self.talks if job not in self.open.values()]
        job = self.random.choice(quiet) if quiet else None
        what = self.random.choices(
            (
                "new",
                "again",
                "park",
                "drop",
                "pin",
                "cancel",
                "pressure",
                "tool",
                "resize",
                "pause",
                "relieve",
            ),
            (20, 30, 8, 4, 3, 6, 3, 6, 1.5, 0.7, 1),
        )[0]
        residency = self.core.residency
        if what == "new" and self.started < JOBS and len(self.open) < AT_ONCE:
            self.started += 1
            # Families of jobs begin alike, as agents with one system prompt do.
            start = prompt(self.started % 5, 60)
            self._ask(f"job{self.started}", [*start, *prompt(self.started, self.random.randint(1, 120))])
        elif what == "again" and job is not None and len(self.open) < AT_ONCE:
            talk = self.talks[job]
            more = prompt(len(talk), self.random.randint(1, 40))
            kept = talk if self.random.random() < 0.9 else talk[: len(talk) // 2]
            if len(kept) + len(more) < 180:
                self._ask(job, [*kept, *more])
            else:
                del self.talks[job]
        elif what == "park" and job is not None and not self.elastic.paused:
            residency.park_now(job)
            self.core.kv_changed()
        elif what == "drop" and job is not None:
            residency.drop(job)
            self.core.kv_changed()
        elif what == "pin" and job is not None:
            residency.pin(job, self.random.random() < 0.5)
        elif what == "tool" and job is not None and job in self.core.scheduler.jobs:
            self.core.tool_called(job, self.random.choice(("bash:ls", "bash:pytest", "read")))
        elif what == "cancel" and self.open:
            segment = self.random.choice(list(self.open))
            self.cancelled.add(segment)
            self.core.cancel(Cancel(segment))
        elif what == "pressure":
            self.core.pressure_changed(
                {"cells": self.random.choice(_LEVELS), "ram": self.random.choice(_LEVELS)}
            )
        elif what == "resize":
            size, slots = self.random.choice(((2048, 4), (1024, 4), (1024, 2), (512, 2)))
            # Refused while paused, or when somebody at work would not fit.
            with suppress(ResizeRefused):
                self.elastic.resize(size, slots, "soak")
        elif what == "pause":
            if self.elastic.paused:
                self.elastic.resume()
            else:
                self.elastic.pause()
        elif what == "relieve":
            residency.store.relieve_ram(1 << 18)

    def take(self) -> None:
        """Takes in what the core says; each segment has to end once, and as it was asked to."""
        for message in self.core.take_messages():
            assert not isinstance(message, Failed), message
            if isinstance(message, Finished):
                job = self.open.pop(message.segment)
                if message.segment in self.cancelled:
                    assert message.reason == "cancelled"
                    self.talks.pop(job, None)
                else:
                    assert message.output_tokens == len(message.output)
                    self.talks[job] += message.output

    def work(self, steps: int) -> None:
        """Steps, or idles where there is nothing to do."""
        for _ in range(steps):
            if self.core.busy:
                self.core.step()
            else:
                self.core.idle()
            self.take()

    def _ask(self, job: str, tokens: list[int]) -> None:
        self.talks[job] = tokens
        self.open[self.submit(job, tokens, self.random.randint(1, 24))] = job

    def check(self) -> None:
        """What has to be true between any two steps."""
        self.take()
        core, store = self.core, self.core.residency.store
        assert core.scheduler.segments.keys() == core.runs.keys() == self.open.keys()
        held = {id(part.buffer): len(part.buffer) for part in store.tree if part.buffer is not None}
        assert store.arena.allocated <= store.arena.budget
        assert sum(held.values()) <= store.arena.allocated - store.arena.idle_bytes
        if self.elastic.paused:
            return
        context, owners = core.context, {r.sequence.id: s for s, r in core.runs.items() if r.sequence}
        assert context is not None
        for sequence in core.table:
            assert owners.get(sequence.id) == sequence.segment
            if not sequence.reserved:
                assert context.seq_end(sequence.id) == len(sequence.tokens)

    def check_idle(self) -> None:
        """What has to be true beside that when everything has ended and the disk is still."""
        self.check()
        core, store = self.core, self.core.residency.store
        disk = store.disk
        assert disk is not None
        assert disk.folder is not None
        assert not any(sequence.reserved for sequence in core.table)
        assert all(part.busy == 0 for part in store.tree)
        held = {id(part.buffer): len(part.buffer) for part in store.tree if part.buffer is not None}
        assert sum(held.values()) == store.arena.allocated - store.arena.idle_bytes
        expected = {part.id for part in store.tree if part.on_disk}
        deadline = time.monotonic() + 60
        # Files are removed by a thread that reports nothing.
        while (files := {file.stem for file in disk.folder.glob("*.kv")}) != expected:
            assert time.monotonic() < deadline, files ^ expected
        assert not list(disk.folder.glob("*.tmp*"))

    def settle(self) -> None:
        """Lets everything come to its end."""
        if self.elastic.paused:
            self.elastic.resume()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.work(1)
            disk = self.core.residency.store.disk
            if not self.open and not self.core.residency.unfinished and not (disk and disk.busy):
                return
        raise AssertionError("it never came to an end")


@pytest.fixture
def soak(tiny_path: Callable[[ShapeName], Path], tmp_path: Path) -> Iterator[Callable[[str, int], Soak]]:
    made: list[Soak] = []

    def make(layout: str, seed: int) -> Soak:
        changes = {
            "context.size": 1024,
            "context.slots": 4,
            "kv.layout": layout,
            "kv.max_stall_ms": 0.05,
            "model.threads": 1,
            "retention.disk_path": str(tmp_path / "kv"),
            "retention.disk_mib": 2,
            "retention.ram_mib": 2,
            "retention.write_behind_s": 0.01,
            "retention.min_tokens": 8,
        }
        made.append(Soak(tiny_path("tiny"), override(Profile(), changes), seed))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("seed", [7, 8, 9])
@pytest.mark.parametrize("layout", ["per_slot", "unified"])
def test_nothing_is_lost_and_nothing_leaks(soak: Callable[[str, int], Soak], layout: str, seed: int) -> None:
    process = psutil.Process()
    threads = threading.active_count()
    s = soak(layout, seed)
    descriptors = process.num_fds()
    while s.started < JOBS or s.open:
        s.act()
        s.work(s.random.randint(0, 6) if s.started < JOBS else 20)
        s.check()
        if s.elastic.paused and s.started >= JOBS:
            s.elastic.resume()
    s.settle()
    s.check_idle()
    stats, residency = s.core.residency.store.stats, s.core.residency
    assert stats.parks
    assert stats.restores
    assert residency.stats.rebuilds
    assert residency.store.disk is not None
    assert residency.store.disk.stats.writes
    assert s.core.totals.segments_cancelled
    assert s.core.totals.segments_failed == 0
    assert process.num_fds() <= descriptors + 1
    for job in {owner for part in residency.store.tree for owner in part.owners}:
        residency.drop(job)
    for sequence in s.core.table.idle():
        s.core.table.clear(sequence)
    s.settle()
    assert s.core.table.cells_used == 0
    s.elastic.flush(20)
    s.elastic.paused = True
    s.loaded.close()
    assert threading.active_count() == threads
