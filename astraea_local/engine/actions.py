"""What users ask of a running engine, done between two steps and answered at once."""

import time

from astraea_local.engine.core import EngineCore, Refused
from astraea_local.engine.frames import job_state
from astraea_local.engine.messages import AskJob, JobAction, PauseScheduling, Question, Reply


def answer(core: EngineCore, question: Question) -> Reply:
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
            core.note("info", f"{job}: {done}, on request")
            return Reply(request, "done", done)


def _act(core: EngineCore, asked: JobAction) -> str:
    match asked.action:
        case "pin" | "unpin":
            return core.pin(asked.job, asked.action == "pin")
        case "park":
            return core.park_now(asked.job)
        case "drop":
            return core.drop_kv(asked.job)
        case "cancel":
            count = core.cancel_job(asked.job)
            if not count:
                raise Refused("it has no request that is queued or running")
            return f"cancelled {count} request{'' if count == 1 else 's'}"
        case "priority":
            core.set_priority(asked.job, asked.value)
            policy = core.scheduler.policy
            ignored = "" if policy.heeds_priority else f", which the policy {policy.name} does not look at"
            return f"priority set to {asked.value}{ignored}"


def _pause(core: EngineCore, on: bool) -> str:
    waiting = len(core.scheduler.segments) - len(core.scheduler.running)
    if on == core.scheduling_paused:
        return "scheduling was paused already" if on else "scheduling was not paused"
    core.pause_scheduling(on)
    done = "paused: nothing new is admitted" if on else f"resumed: {waiting} requests waited"
    core.note("info", f"scheduling {done}, on request")
    return f"scheduling {done}"


def _detail(core: EngineCore, request: int, job_id: str) -> Reply:
    job = core.scheduler.jobs.get(job_id)
    state = "done" if job is None else job_state(job, [core.runs[i] for i in job.active if i in core.runs])
    detail = core.timelines.detail(core.clock(), time.time(), job_id, state)
    if detail is None:
        return Reply(request, "unknown", f"there is no job {job_id!r}")
    return Reply(request, "done", detail.model_dump_json())
