"""Carries out the scheduler's plans: who gets a sequence, and who gives one back."""

from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.engine.eventlog import EngineLog
from astraea_local.engine.kv.store import Parking
from astraea_local.engine.lifecycle import Lifecycle
from astraea_local.engine.placement import Delay
from astraea_local.engine.residency import Residency
from astraea_local.engine.run import Run
from astraea_local.engine.slots import Sequence, common_prefix
from astraea_local.engine.speed import SpeedMeter
from astraea_local.engine.stall import Stall
from astraea_local.profile import PolicyName
from astraea_local.scheduler.scheduler import Plan, Scheduler, View

# A preemptive policy looks again after so many steps, even when nothing happened.
_REPLAN_STEPS = 8
# A segment waits for another's prefill when that will give it so many more tokens than it has.
_WORTH_WAITING = 64


@dataclass(slots=True)
class Dispatcher:
    """Asks for a plan when one is due and executes it; does what users ask of the scheduler."""

    scheduler: Scheduler
    residency: Residency
    lifecycle: Lifecycle
    meter: SpeedMeter
    log: EngineLog
    clock: Callable[[], float]
    admitting: bool = True
    """False: nothing new is admitted, on request; what runs goes on."""
    _since_plan: int = 0

    # -- requests of a user ------------------------------------------------------------------------

    def set_policy(self, name: PolicyName) -> None:
        """Goes on with another policy; what runs goes on running."""
        if name != self.scheduler.policy.name:
            self.scheduler.set_policy(self.clock(), name)
            self.log.note("info", f"scheduling by {name}: {self.scheduler.policy.summary}")
            self.lifecycle.stale.plan = True

    def set_admitting(self, on: bool) -> None:
        """Admits nothing new while off; what runs goes on, what is submitted waits."""
        self.admitting = on
        self.lifecycle.stale.plan = True

    def set_priority(self, job: str, priority: int) -> None:
        """Moves a known job up or down by that many queues."""
        self.scheduler.set_priority(self.clock(), job, priority)
        self.lifecycle.stale.plan = True

    # -- plans -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether anyone runs, or waits for a plan that may let them."""
        # While nothing is admitted, those that wait have nothing to do.
        if self.admitting or self.lifecycle.stale.plan:
            return bool(self.lifecycle.runs)
        return bool(self.lifecycle.order)

    def update(self, stall: Stall) -> None:
        """Once in each step: plans where that is due, and moves KV as far as `stall` allows."""
        self._since_plan += 1
        preempts = self.scheduler.policy.preempts
        if self.lifecycle.stale.plan or (preempts and self._since_plan >= _REPLAN_STEPS):
            self._execute(self._plan(), stall)

    def _plan(self) -> Plan:
        now = self.clock()
        stale, runs = self.lifecycle.stale, self.lifecycle.runs.values()
        waiting = [run for run in runs if run.sequence is None]
        if stale.cached:
            stale.cached = False
            for run in waiting:
                known = self.residency.reusable(run.context.view(), run.request.job)
                self.scheduler.set_cached(now, run.request.segment, *known)
        deferred = frozenset(
            run.request.segment for run in waiting if not self.admitting or self._prefix_is_coming(run)
        )
        # What the running ones have still to prefill is spoken for as well.
        taken = sum(len(run.context) for run in runs if run.sequence is not None)
        table = self.residency.table
        room = max(0, table.cells_total - taken) if table.unified else None
        return self.scheduler.plan(now, View(self.meter.speeds, room, deferred))

    def _execute(self, plan: Plan, stall: Stall) -> None:
        lifecycle = self.lifecycle
        lifecycle.stale.plan = False
        self._since_plan = 0
        for decision in plan.preempt:
            lifecycle.preempt(lifecycle.runs[decision.segment], decision.reason)
        for decision in plan.admit:
            run = lifecycle.runs[decision.segment]
            # An admission just made may have started the very prefix that this one needs.
            if self._prefix_is_coming(run) or not self._admit(run, stall):
                lifecycle.stale.plan = True
        lifecycle.order = [run for i in plan.order if (run := lifecycle.runs[i]).sequence is not None]

    def _admit(self, run: Run, stall: Stall) -> bool:
        """Whether the run got a sequence."""
        now = self.clock()
        placed = self._place(run, now, stall)
        if isinstance(placed, Delay):
            return False
        self.lifecycle.admitted(run, *placed, now)
        return True

    def _place(self, run: Run, now: float, stall: Stall) -> tuple[Sequence, int] | Delay:
        """Places the run's context; the meter learns from what was copied for it."""
        residency, request = self.residency, run.request
        stats = residency.store.stats
        saved = (stats.park_bytes, stats.park_s)
        restored = (stats.restore_bytes, stats.restore_s)
        placed = residency.placer.place(request.segment, run.context.view(), request.job, now, stall)
        self.meter.observe_save(stats.park_bytes - saved[0], stats.park_s - saved[1])
        self.meter.observe_restore(stats.restore_bytes - restored[0], stats.restore_s - restored[1])
        return placed

    def _prefix_is_coming(self, run: Run) -> bool:
        """Whether one that runs is computing a prefix that this one had better wait for."""
        known = self.scheduler.segments[run.request.segment].cached
        prompt = run.context.view()
        for other in self.lifecycle.runs.values():
            if other.sequence is None or other.decoding:
                continue
            shared = common_prefix(other.context.view(), prompt)
            if shared > len(other.sequence.tokens) and shared - known >= _WORTH_WAITING:
                return self.residency.table.trimmable
        return False

    # -- a pool without cells ----------------------------------------------------------------------

    def relieve_pool(self, cells: int) -> None:
        """Makes room in a unified pool: parks idle states, or else who ranks last, or ends the only one."""
        lifecycle, placer, table = self.lifecycle, self.residency.placer, self.residency.table
        now, at_once = self.clock(), Stall(None)
        if placer.make_room(cells, at_once):
            return
        # What is on its way back was not needed until now.
        placer.give_up_all()
        if placer.make_room(cells, at_once):
            return
        running = [run for run in lifecycle.runs.values() if run.sequence is not None]
        if len(running) > 1:
            victim = self.scheduler.last(now)
            assert victim is not None
            run = lifecycle.runs[victim.id]
            sequence = run.sequence
            assert sequence is not None
            lifecycle.preempt(run, "the KV pool is full")
            if placer.park(sequence, at_once) is Parking.FAILED:
                text = f"no room in RAM for {run.request.job}: its context will be recomputed"
                self.log.note("warning", text)
            table.clear(sequence)
            return
        (run,) = running
        # Nobody fails for a pin.
        if placer.make_room(cells, at_once, pinned=True):
            return
        if run.output:
            lifecycle.end(run, "length")
            return
        text = f"the context of {len(run.context)} tokens does not fit the pool of {table.cells_total} cells"
        sequence = run.sequence
        lifecycle.fail(run, text, "context_length_exceeded")
        if sequence is not None:
            table.clear(sequence)
