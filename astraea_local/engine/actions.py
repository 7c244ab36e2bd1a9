"""What users ask of a running engine, done between two steps and answered at once."""

import time

from astraea_local.engine.core import EngineCore
from astraea_local.engine.frames import job_state
from astraea_local.engine.messages import AskJob, Cancel, CoreQuestion, JobAction, PauseScheduling, Reply


class Refused(Exception):
    """What was asked for is not possible as things are; the message says why."""


def act(core: EngineCore, question: CoreQuestion) -> Reply:
    """Does it and says what was done, in the event log as well; or why it is not possible."""
    match question:
        case AskJob(request, job):
            return _detail(core, request, job)
        case PauseScheduling(request, on):
            return Reply(request, "done", _pause(core, on))
        case JobAction(request, job):
            if job not in core.scheduler.jobs:
                return Reply(request, "unknown", f"there is no job {job!r}")
            try:
                done = _act(core, question)
            except Refused as error:
                return Reply(request, "refused", f"{job}: {error}")
            core.log.note("info", f"{job}: {done}, on request")
            return Reply(request, "done", done)


def _act(core: EngineCore, asked: JobAction) -> str:
    match asked.action:
        case "pin":
            return _pin(core, asked.job)
        case "unpin":
            core.residency.pin(asked.job, False)
            return "its KV may be moved again"
        case "park":
            return _park(core, asked.job)
        case "drop":
            return _drop(core, asked.job)
        case "cancel":
            return _cancel(core, asked.job)
        case "priority":
            core.dispatcher.set_priority(asked.job, asked.value)
            policy = core.scheduler.policy
            ignored = "" if policy.heeds_priority else f", which the policy {policy.name} does not look at"
            return f"priority set to {asked.value}{ignored}"


def _cancel(core: EngineCore, job: str) -> str:
    segments = list(core.scheduler.jobs[job].active)
    if not segments:
        raise Refused("it has no request that is queued or running")
    for segment in segments:
        core.cancel(Cancel(segment))
    return f"cancelled {len(segments)} request{'' if len(segments) == 1 else 's'}"


def _pin(core: EngineCore, job: str) -> str:
    pinned = core.residency.pinned - {job}
    places = len(core.table.sequences) if core.residency.attached else core.scheduler.slots
    if len(pinned) + 1 >= places:
        raise Refused(f"{len(pinned)} other jobs are pinned, and one slot must stay free for everyone else")
    core.residency.pin(job, True)
    return "its KV stays in its slot"


def _park(core: EngineCore, job: str) -> str:
    _check_idle(core, job)
    if not core.residency.attached:
        raise Refused("the server is paused: all KV is parked")
    if not any(s.job == job for s in core.table.idle()):
        raise Refused("it has no KV in a slot")
    tokens = core.residency.park_now(job)
    if not tokens:
        raise Refused("there is no room for its KV: raise retention.ram_mib")
    core.kv_changed()
    return f"parked {tokens:,} tokens to RAM"


def _drop(core: EngineCore, job: str) -> str:
    _check_idle(core, job)
    tokens = core.residency.drop(job)
    if not tokens:
        raise Refused("it has no KV")
    core.kv_changed()
    return f"dropped {tokens:,} tokens"


def _check_idle(core: EngineCore, job: str) -> None:
    if any(run.request.job == job and run.sequence is not None for run in core.runs.values()):
        raise Refused("it is running: wait for the end of its request, or cancel it")


def _pause(core: EngineCore, on: bool) -> str:
    if on != core.dispatcher.admitting:
        return "scheduling was paused already" if on else "scheduling was not paused"
    core.dispatcher.set_admitting(not on)
    waiting = len(core.scheduler.segments) - len(core.scheduler.running)
    done = "paused: nothing new is admitted" if on else f"resumed: {waiting} requests waited"
    core.log.note("info", f"scheduling {done}, on request")
    return f"scheduling {done}"


def _detail(core: EngineCore, request: int, job_id: str) -> Reply:
    job = core.scheduler.jobs.get(job_id)
    state = "done" if job is None else job_state(job, [core.runs[i] for i in job.active if i in core.runs])
    detail = core.timelines.detail(core.clock(), time.time(), job_id, state)
    if detail is None:
        return Reply(request, "unknown", f"there is no job {job_id!r}")
    return Reply(request, "done", detail.model_dump_json())
