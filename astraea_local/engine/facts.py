"""What the retention policy is told about jobs and the machine, gathered from the running engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from astraea_local.engine.residency import Residency
from astraea_local.engine.run import Run
from astraea_local.engine.slots import Sequence
from astraea_local.scheduler.job import Job
from astraea_local.scheduler.retention import IdleKv, Level, Situation
from astraea_local.scheduler.scheduler import Scheduler
from astraea_local.scheduler.speeds import Speeds


@dataclass(slots=True)
class EngineFacts:
    """Answers from the core's own tables; `residency` is set when it exists."""

    scheduler: Scheduler
    runs: Mapping[int, Run]
    measured: Callable[[], Speeds]
    clock: Callable[[], float]
    levels: Mapping[str, Level]
    """Of `cells`, `vram`, `ram` and `disk`."""
    residency: Residency | None = None

    def speeds(self) -> Speeds:
        return self.measured()

    def is_useful(self, job: str | None) -> bool:
        found = self._job(job)
        return found is not None and not found.final

    def is_running(self, job: str) -> bool:
        return any(run.sequence is not None and run.request.job == job for run in self.runs.values())

    def is_asking(self, job: str) -> bool:
        return any(run.request.job == job for run in self.runs.values())

    def describe(self, sequence: Sequence) -> IdleKv:
        assert self.residency is not None
        job, stay = self._job(sequence.job), self.residency.stays.get(sequence.id)
        tokens = sequence.tokens.view()
        covered = self.residency.placer.covers(sequence)
        return IdleKv(
            holder=sequence.id,
            job=sequence.job,
            tokens=len(tokens),
            new_tokens=0 if covered else len(tokens) - self.residency.store.covered(tokens),
            since=sequence.last_used if stay is None else stay.since,
            last_used=sequence.last_used,
            wait=None if stay is None else stay.wait,
            useful=self.is_useful(sequence.job),
            pinned=sequence.job in self.residency.pinned,
            kept_until=0.0 if job is None else job.kept_until,
            created=0.0 if job is None else job.created,
        )

    def situation(self) -> Situation:
        assert self.residency is not None
        residency, speeds = self.residency, self.measured()
        table, store = residency.table, residency.store
        running = [run for run in self.runs.values() if run.sequence is not None]
        waiting = [run for run in self.runs.values() if run.sequence is None]
        wanted = sum(len(run.context) for run in waiting)
        width = max(1, len(running))
        blocked = table.free() is None or (table.unified and wanted > table.cells_free)
        could = min(len(waiting), max(0, self.scheduler.slots - len(running)))
        return Situation(
            now=self.clock(),
            speeds=speeds,
            running=len(running),
            step_s=speeds.decode_step(width, sum(len(run.context) for run in running)),
            waiting=could if blocked else 0,
            wanted=wanted,
            cells_used=table.cells_used,
            cells_total=table.cells_total,
            taxed=table.unified,
            can_park=store.enabled,
            ram_free=store.arena.budget,
            disk_free=0 if store.disk is None else store.disk.budget,
            cells_level=self.levels.get("cells", "normal"),
            ram_level=self.levels.get("ram", "normal"),
        )

    def _job(self, job: str | None) -> Job | None:
        return None if job is None else self.scheduler.jobs.get(job)
