"""The context's size and the model's memory, changed on a running server."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from astraea_local.api.errors import from_reply
from astraea_local.api.service import Service
from astraea_local.engine.messages import Reply

router = APIRouter()


class ContextRequest(BaseModel):
    """The context to go on with; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    size: int | None = Field(default=None, ge=256, le=1 << 28)
    """KV cells in total."""
    slots: int | None = Field(default=None, ge=1, le=64)
    """Segments that can run at the same time."""


@router.post("/astraea/v1/context")
async def resize(request: Request, body: ContextRequest) -> dict[str, Any]:
    """Makes the context anew in another size; running requests pause for a moment and none is lost."""
    service = _service(request)
    service.check_ready()
    ready = service.engine.ready
    assert ready is not None
    size = ready.context if body.size is None else body.size
    slots = ready.slots if body.slots is None else body.slots
    return _answer(await service.engine.resize(size, slots))


@router.post("/astraea/v1/pause")
async def pause(request: Request) -> dict[str, Any]:
    """Unloads the model, so that other programs can have its memory; requests wait."""
    return _answer(await _ready(request).engine.suspend(True))


@router.post("/astraea/v1/resume")
async def resume(request: Request) -> dict[str, Any]:
    """Loads the model again; waiting requests go on."""
    return _answer(await _ready(request).engine.suspend(False))


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _ready(request: Request) -> Service:
    service = _service(request)
    service.check_ready()
    return service


def _answer(reply: Reply) -> dict[str, Any]:
    if reply.outcome != "done":
        raise from_reply(reply)
    return {"done": reply.text}
