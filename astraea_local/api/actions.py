"""What users do with jobs and with the scheduler of a running server, and a job's whole life."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from astraea_local.api.errors import ApiError
from astraea_local.engine.supervisor import Engine, NotPossible, Unavailable, UnknownJob
from astraea_local.job_detail import JobDetail

router = APIRouter()

_RETRY_S = 2.0


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
    async with _answered():
        done = await _engine(request).act(job, "priority", body.priority)
    return ActionDone(job=job, action="priority", done=done)


@router.post("/astraea/v1/jobs/{job:path}/{action}")
async def act(
    request: Request, job: str, action: Literal["pin", "unpin", "park", "drop", "cancel"]
) -> ActionDone:
    """`pin`: its KV stays in its slot. `unpin`: no longer. `park`: its KV goes to RAM now. `drop`: its KV is
    forgotten. `cancel`: its requests end with an error."""
    async with _answered():
        done = await _engine(request).act(job, action)
    return ActionDone(job=job, action=action, done=done)


@router.get("/astraea/v1/jobs/{job:path}", response_model=JobDetail)
async def detail(request: Request, job: str) -> Response:
    """What the job did when, and what had been predicted."""
    async with _answered():
        found = await _engine(request).job_detail(job)
    return Response(found, media_type="application/json")


@router.post("/astraea/v1/scheduler/{action}")
async def scheduling(request: Request, action: Literal["pause", "resume"]) -> SchedulingDone:
    """`pause`: nothing new is admitted, what runs goes on. `resume`: as before."""
    async with _answered():
        done = await _engine(request).pause_scheduling(action == "pause")
    return SchedulingDone(action=action, done=done)


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.service.engine
    return engine


@asynccontextmanager
async def _answered() -> AsyncIterator[None]:
    """Turns what the engine says no to into errors of the API."""
    try:
        yield
    except UnknownJob as error:
        raise ApiError(404, str(error), code="unknown_job", param="job") from None
    except NotPossible as error:
        raise ApiError(409, str(error), code="not_possible") from None
    except Unavailable as error:
        raise ApiError(503, str(error), code="engine_unavailable", retry_after_s=_RETRY_S) from None
