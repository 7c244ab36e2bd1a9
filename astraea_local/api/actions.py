"""What users do with jobs and with the scheduler of a running server, and a job's whole life."""

from collections.abc import Awaitable
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from astraea_local.api.errors import from_reply
from astraea_local.api.service import Service
from astraea_local.engine.messages import Reply
from astraea_local.job_detail import JobDetail

router = APIRouter()


class ActionDone(BaseModel):
    """What an action on a job came to."""

    job: str
    action: str
    done: str


class SchedulingDone(BaseModel):
    """What an action on the scheduler came to."""

    action: str
    done: str


class PriorityRequest(BaseModel):
    """Queues by which a job is moved up, or down when negative."""

    model_config = ConfigDict(extra="forbid")

    priority: int = Field(ge=-9, le=9, strict=True)


# Names may contain slashes, and a path is decoded before it is matched: the last part is the action.
@router.post("/astraea/v1/jobs/{job:path}/priority")
async def set_priority(request: Request, job: str, body: PriorityRequest) -> ActionDone:
    """Moves a job up or down by so many queues, until a request of its own says otherwise."""
    done = await _done(_service(request).engine.act(job, "priority", body.priority))
    return ActionDone(job=job, action="priority", done=done)


@router.post("/astraea/v1/jobs/{job:path}/{action}")
async def act(
    request: Request, job: str, action: Literal["pin", "unpin", "park", "drop", "cancel"]
) -> ActionDone:
    """`pin`: its KV stays in its slot. `unpin`: no longer. `park`: its KV goes to RAM now. `drop`: its KV is
    forgotten. `cancel`: its requests end with an error."""
    done = await _done(_service(request).engine.act(job, action))
    return ActionDone(job=job, action=action, done=done)


@router.get("/astraea/v1/jobs/{job:path}", response_model=JobDetail)
async def detail(request: Request, job: str) -> Response:
    """What the job did when, and what had been predicted."""
    found = await _done(_service(request).engine.job_detail(job))
    return Response(found, media_type="application/json")


@router.post("/astraea/v1/scheduler/{action}")
async def scheduling(request: Request, action: Literal["pause", "resume"]) -> SchedulingDone:
    """`pause`: nothing new is admitted, what runs goes on. `resume`: as before."""
    done = await _done(_service(request).engine.pause_scheduling(action == "pause"))
    return SchedulingDone(action=action, done=done)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _done(reply: Awaitable[Reply]) -> str:
    """What was done. Raises `ApiError`."""
    answer = await reply
    if answer.outcome != "done":
        raise from_reply(answer)
    return answer.text
