"""`doctor`: what this machine, this llama.cpp build and this profile make of each other.

Nothing is downloaded and no weights are loaded.
"""

from typing import Any

from astraea_local.doctor import survey, verdict
from astraea_local.doctor.report import Finding, ModelFacts, Report, render
from astraea_local.doctor.survey import kv_bytes_per_token
from astraea_local.engine.binding import supports_gpu_offload
from astraea_local.model_source import ModelSourceError, locate
from astraea_local.profile import Profile

__all__ = ["Finding", "Report", "examine", "idle_gpu", "kv_bytes_per_token", "render"]


def examine(profile: Profile, *, nvml: Any = None) -> Report:
    """The report on this machine and `profile`; `nvml` stands in for the pynvml module."""
    # NVML before llama.cpp, whose own CUDA context would be counted as used.
    gpus, nvml_line = survey.read_gpus(nvml or _pynvml())
    host = survey.read_host()
    build = survey.read_build()
    findings: list[Finding] = []
    model = estimate = None
    if isinstance(build, str):
        findings.append(verdict.unusable_build(build))
    else:
        findings.append(verdict.on_build(profile, build, gpus))
        findings += verdict.on_amx(build)
        model = _model(profile, findings)
        if model is not None:
            estimate = verdict.estimate(profile, build, model)
            findings += verdict.on_memory(profile, build, host, model, estimate)
            findings += verdict.on_context(profile, model)
    findings += verdict.on_host(profile, host, estimate)
    return Report(
        profile=profile.name,
        source=profile.model.source,
        build=None if isinstance(build, str) else build,
        gpus=tuple(gpus),
        nvml=nvml_line,
        host=host,
        model=model,
        estimate=estimate,
        findings=tuple(findings),
    )


def _model(profile: Profile, findings: list[Finding]) -> ModelFacts | None:
    try:
        path = locate(profile.model.source)
    except ModelSourceError as error:
        findings.append(Finding(severity="error", text=f"model.source: {error}"))
        return None
    if path is None:
        text = (
            f"model.source {profile.model.source} is not downloaded yet: "
            "the first `astraea-local serve` with this profile fetches it; until then its size is unknown"
        )
        findings.append(Finding(severity="warning", text=text))
        return None
    facts = survey.read_model(path, profile.kv)
    if isinstance(facts, str):
        findings.append(Finding(severity="error", text=f"model.source: {facts}"))
        return None
    return facts


def idle_gpu(*, nvml: Any = None) -> str | None:
    """The line that calls out a CPU-only build on a machine with an NVIDIA GPU; None when all is well.

    Asks llama.cpp only for its build: asking for its devices would take VRAM in the asking process.
    """
    gpus, _ = survey.read_gpus(nvml or _pynvml())
    return verdict.idle_gpu(gpus) if gpus and not supports_gpu_offload() else None


def _pynvml() -> Any:
    import pynvml

    return pynvml
