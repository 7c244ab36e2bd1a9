"""What `doctor` reports, as data and as text. Sizes are bytes."""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["ok", "warning", "error"]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gpu(_Facts):
    """An NVIDIA GPU as NVML reports it; None where the driver does not say."""

    name: str
    driver: str | None = None
    total: int | None = None
    free: int | None = None
    used: int | None = None


class Device(_Facts):
    """Something that llama.cpp can compute on."""

    name: str
    description: str
    is_gpu: bool
    free: int
    total: int


class Build(_Facts):
    """The installed llama.cpp."""

    version: str
    gpu_offload: bool
    cpu_features: tuple[str, ...]
    devices: tuple[Device, ...]
    amx_off: bool = False
    """The compiler made AMX code that crashes; it is not used."""

    @property
    def gpu_devices(self) -> list[Device]:
        """The devices that layers can be offloaded to."""
        return [device for device in self.devices if device.is_gpu]


class Host(_Facts):
    """The computer: cores, memory, and the room on the disks of the folders that grow."""

    physical_cores: int
    logical_cores: int
    ram_total: int
    ram_available: int
    disk_free: dict[str, int]


class ModelFacts(_Facts):
    """What the header of the GGUF says, and the size of all its files."""

    path: str
    architecture: str
    file_bytes: int
    layers: int
    heads: int
    embedding: int
    vocabulary: int
    trained_context: int
    kv_bytes_per_token: int


class Estimate(_Facts):
    """Memory that the profile will take, and how it is divided between the GPU and the host's memory."""

    weights: int
    kv: int
    compute: int
    on_gpu: int
    on_host: int


class Finding(_Facts):
    """One verdict; anything but `ok` says what to change."""

    severity: Severity
    text: str


class Report(_Facts):
    """Everything `doctor` found; what could not be read is None and has a finding."""

    profile: str
    source: str
    build: Build | None
    gpus: tuple[Gpu, ...]
    nvml: str
    host: Host
    model: ModelFacts | None
    estimate: Estimate | None
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        """The gravest severity among the findings."""
        found = {finding.severity for finding in self.findings}
        return "error" if "error" in found else "warning" if "warning" in found else "ok"


def gib(size: int) -> str:
    """A size for people, for example `1.5 GiB` or `94 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def render(report: Report) -> str:
    """The report as plain text, one fact a line; lines are not wrapped, so that commands can be copied."""
    lines = [f"{label:<14}{text}" for label, text in _facts(report)]
    lines.append("")
    lines += [f"{finding.severity.upper():<14}{finding.text}" for finding in report.findings]
    return "\n".join(lines) + "\n"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    if (build := report.build) is not None:
        offload = "with GPU offload" if build.gpu_offload else "CPU only"
        yield "llama.cpp", f"llama-cpp-python {build.version}, {offload}"
        yield "CPU features", " ".join(build.cpu_features)
        for device in build.devices:
            memory = f"{gib(device.free)} of {gib(device.total)} free"
            yield "device", f"{device.name}: {device.description}, {memory}"
    yield "NVML", report.nvml
    for gpu in report.gpus:
        memory = "memory not reported"
        if gpu.total is not None and gpu.used is not None and gpu.free is not None:
            memory = f"{gib(gpu.total)}, {gib(gpu.used)} used, {gib(gpu.free)} free"
        yield "GPU", f"{gpu.name}: {memory}, driver {gpu.driver or 'not reported'}"
    host = report.host
    yield "CPU", f"{host.physical_cores} cores, {host.logical_cores} threads"
    yield "memory", f"{gib(host.ram_total)}, {gib(host.ram_available)} available"
    for folder, free in host.disk_free.items():
        yield "disk", f"{gib(free)} free for {folder}"
    yield "profile", f"{report.profile}, model {report.source}"
    if (model := report.model) is not None:
        yield "model", f"{model.path} ({model.architecture}, {gib(model.file_bytes)})"
        yield "", f"trained for {model.trained_context:,} tokens, {model.kv_bytes_per_token:,} B of KV each"
    if (need := report.estimate) is not None:
        parts = f"weights {gib(need.weights)} + KV {gib(need.kv)} + compute {gib(need.compute)}"
        yield "estimate", f"{parts}: {gib(need.on_gpu)} on the GPU, {gib(need.on_host)} on the host"
