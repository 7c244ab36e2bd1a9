"""Simulated memory pressure: every path that a full GPU takes, on a machine without one."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from astraea_local.api.errors import ApiError
from astraea_local.api.service import Service
from astraea_local.engine.memory import Reading

router = APIRouter()


class PressureRequest(BaseModel):
    """What to pretend; a field that is left out stays as measured. Bytes unless said otherwise."""

    # A slip in a name would end the simulation instead of changing it.
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    gpu: str = Field(default="", max_length=200)
    """Name of the GPU."""
    vram_total: int | None = Field(default=None, gt=0)
    vram_free: int | None = Field(default=None, ge=0)
    vram_ours: int | None = Field(default=None, ge=0)
    vram_others: int | None = Field(default=None, ge=0)
    """Without `vram_free`, what is free is what others and the server leave."""
    gpu_load: float | None = Field(default=None, ge=0, le=1)
    gpu_temperature: float | None = Field(default=None, ge=-100, le=200)
    """Degrees Celsius."""
    ram_total: int | None = Field(default=None, gt=0)
    ram_available: int | None = Field(default=None, ge=0)
    ram_ours: int | None = Field(default=None, ge=0)
    disk_total: int | None = Field(default=None, gt=0)
    disk_free: int | None = Field(default=None, ge=0)

    @field_validator("vram_free", "vram_ours", "vram_others", "ram_available", "ram_ours", "disk_free")
    @classmethod
    def _part_fits(cls, value: int | None, info: ValidationInfo) -> int | None:
        whole = f"{str(info.field_name).partition('_')[0]}_total"
        total = info.data.get(whole)
        if value is not None and total is not None and value > total:
            raise ValueError(f"must not exceed {whole} ({total})")
        return value

    @property
    def needs_vram_total(self) -> bool:
        """Whether it says something of the VRAM, but not how much there is."""
        given = (self.vram_free, self.vram_ours, self.vram_others)
        return self.vram_total is None and any(value is not None for value in given)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    if not service.profile.memory.debug_pressure:
        raise ApiError(
            404,
            "simulated pressure is switched off: serve with memory.debug_pressure = true in the profile",
            code="debug_pressure_off",
            param="memory.debug_pressure",
        )
    return service


@router.post("/astraea/v1/debug/pressure")
async def simulate(request: Request, body: PressureRequest) -> dict[str, Any]:
    """Replaces readings of memory until the next call; `{}` ends it, and so does DELETE."""
    engine = _service(request).engine
    given = body.model_dump(exclude_defaults=True)
    if body.needs_vram_total and not _knows_vram(request):
        raise ApiError(
            400,
            "vram_total: no GPU's memory is known here, so the simulation has to say how much there is",
            code="invalid_value",
            param="vram_total",
        )
    engine.simulate_pressure(Reading(**given) if given else None)
    return {"simulated": given}


@router.delete("/astraea/v1/debug/pressure")
async def end(request: Request) -> dict[str, Any]:
    """Ends the simulation."""
    _service(request).engine.simulate_pressure(None)
    return {"simulated": {}}


def _knows_vram(request: Request) -> bool:
    engine = _service(request).engine
    pretended = engine.simulated is not None and engine.simulated.vram_total is not None
    return engine.frame is not None and engine.frame.memory.vram_total is not None and not pretended
