"""Judges the facts: every finding but an `ok` names the field or the command that helps."""

from collections.abc import Iterator, Sequence

from astraea_local.doctor.report import Build, Estimate, Finding, Gpu, Host, ModelFacts, gib
from astraea_local.profile import Profile

CUDA_INSTALL = (
    'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36'
)
# Without AMX; GCC 11.5, 12.4, 13.3 and newer can have it.
_AMX_INSTALL = (
    "CXXFLAGS=-U__AMX_INT8__ pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36, "
    "or the same without CXXFLAGS and with GCC 13.3 or newer"
)
_GPU_OVERHEAD = 512 << 20  # kernels and library workspaces of the driver, in none of llama.cpp's figures
_TIGHT = 0.92  # a fuller memory leaves no room for a desktop or a second program to grow
_MIN_DISK = 2 << 30
_MIN_JOB_TOKENS = 2048  # as in profile.KvSettings: below it an agent's system prompt does not fit


def unusable_build(reason: str) -> Finding:
    """llama.cpp cannot be loaded at all."""
    remedy = "pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36"
    return Finding(severity="error", text=f"llama.cpp cannot be used: {reason}: reinstall it with `{remedy}`")


def on_build(profile: Profile, build: Build, gpus: Sequence[Gpu]) -> Finding:
    """Whether the build can use the GPU that the machine has and the profile asks for."""
    asked = profile.model.gpu_layers != 0
    if gpus and not build.gpu_offload:
        return Finding(severity="error" if asked else "warning", text=idle_gpu(gpus))
    if not asked:
        return Finding(severity="ok", text="the profile runs on the CPU, which every llama.cpp build can")
    found = build.gpu_devices
    if not found and build.gpu_offload:
        text = "llama.cpp has GPU support but sees no GPU: check the driver with `nvidia-smi`"
        return Finding(severity="warning", text=f"{text}, or set model.gpu_layers to 0")
    if not found:
        text = "model.gpu_layers asks for a GPU and there is none, so everything runs on the CPU"
        return Finding(severity="warning", text=f"{text}: set it to 0, or take the profile `cpu`")
    if profile.model.main_gpu >= len(found):
        text = f"model.main_gpu is {profile.model.main_gpu}, but llama.cpp sees {len(found)}: set it to 0"
        return Finding(severity="error", text=text)
    return Finding(severity="ok", text=f"llama.cpp can use {found[profile.model.main_gpu].description}")


def on_amx(build: Build) -> Iterator[Finding]:
    """Whether the build's AMX code can be used where the CPU has AMX."""
    if build.amx_off:
        text = "llama.cpp was compiled by a GCC whose AMX code crashes, so AMX and repacked weights are off"
        yield Finding(severity="warning", text=f"{text}: for quicker prefill on the CPU run {_AMX_INSTALL}")


def idle_gpu(gpus: Sequence[Gpu]) -> str:
    """What to say when the build cannot use the GPUs that are there."""
    return f"{gpus[0].name} lies idle, this llama.cpp is a CPU-only build: run {CUDA_INSTALL}"


def estimate(profile: Profile, build: Build, model: ModelFacts) -> Estimate:
    """Memory for the weights, the KV of all cells, and one compute graph."""
    context = profile.context
    kv = context.size * model.kv_bytes_per_token
    # The widest tensors of a graph: a row of logits, or without flash attention of attention scores,
    # for each token in it. They do not live at the same time.
    row = model.vocabulary + 4 * model.embedding
    if profile.model.flash_attention == "off":
        row = max(row, model.heads * _job_tokens(profile, model))
    compute = 4 * context.ubatch * row
    asked = profile.model.gpu_layers
    share = 0.0
    if build.gpu_devices and asked != 0:
        share = 1.0 if asked < 0 else min(1.0, asked / max(1, model.layers))
        compute += _GPU_OVERHEAD
    on_gpu = int(share * (model.file_bytes + kv)) + (compute if share else 0)
    total = model.file_bytes + kv + compute
    return Estimate(weights=model.file_bytes, kv=kv, compute=compute, on_gpu=on_gpu, on_host=total - on_gpu)


def on_memory(
    profile: Profile, build: Build, host: Host, model: ModelFacts, need: Estimate
) -> Iterator[Finding]:
    """Whether the estimate fits the GPU, and the rest the host's memory."""
    index = profile.model.main_gpu
    if need.on_gpu and index < len(build.gpu_devices):
        gpu = build.gpu_devices[index]
        yield _fit(profile, model, need, need.on_gpu, gpu.description, gpu.free, gpu.total)
    if need.on_host:
        yield _fit(profile, model, need, need.on_host, "the host", host.ram_available, host.ram_total)


def _fit(
    profile: Profile, model: ModelFacts, need: Estimate, size: int, name: str, free: int, total: int
) -> Finding:
    facts = f"{gib(size)} of {name}'s memory, {gib(free)} of {gib(total)} is free"
    if size <= _TIGHT * free:
        return Finding(severity="ok", text=f"the profile needs {facts}: it fits")
    knobs = f"lower context.size (now {profile.context.size})"
    room = int(_TIGHT * free) - (size - need.kv)
    step = 256 * profile.context.slots
    cells = room // max(1, model.kv_bytes_per_token) // step * step
    if 0 < cells < profile.context.size:
        knobs = f"lower context.size to {cells}"
    if {profile.kv.type_k, profile.kv.type_v} & {"f32", "f16", "bf16"}:
        knobs += ', set kv.type_k and kv.type_v to "q8_0"'
    if name != "the host":
        knobs += ", set model.gpu_layers to fewer layers"
    knobs += " or take a smaller model"
    if size > total:
        return Finding(severity="error", text=f"the profile needs {facts}: {knobs}")
    if size > free:
        return Finding(severity="error", text=f"the profile needs {facts}: stop other programs, {knobs}")
    return Finding(severity="warning", text=f"the profile needs {facts}, which leaves hardly any: {knobs}")


def _per_slot(profile: Profile, model: ModelFacts) -> bool:
    if profile.kv.layout != "auto":
        return profile.kv.layout == "per_slot"
    share = profile.context.size // profile.context.slots
    return share >= _MIN_JOB_TOKENS or 0 < model.trained_context <= share


def _job_tokens(profile: Profile, model: ModelFacts) -> int:
    """Most tokens that one job can hold."""
    context = profile.context
    return context.size // context.slots if _per_slot(profile, model) else context.size


def on_context(profile: Profile, model: ModelFacts) -> Iterator[Finding]:
    """Whether a job's share of the cells is of use to the model and to an agent."""
    tokens, slots = _job_tokens(profile, model), profile.context.slots
    if _per_slot(profile, model) and 0 < model.trained_context < tokens:
        yield Finding(
            severity="warning",
            text=f"a slot has {tokens} cells, but the model was trained for {model.trained_context} tokens: "
            f"lower context.size to {model.trained_context * slots} or raise context.slots",
        )
    elif tokens < _MIN_JOB_TOKENS:
        yield Finding(
            severity="warning",
            text=f"a job has {tokens} tokens at most, less than most agents' system prompts: raise "
            f'context.size to {_MIN_JOB_TOKENS * slots}, lower context.slots or set kv.layout to "unified"',
        )
    else:
        yield Finding(severity="ok", text=f"a job can hold {tokens:,} tokens, {slots} run at the same time")


def on_host(profile: Profile, host: Host, need: Estimate | None) -> Iterator[Finding]:
    """Whether parked states, threads and disks suit the machine."""
    parked = profile.retention.ram_mib << 20
    left = host.ram_available - (0 if need is None else need.on_host)
    if parked > _TIGHT * left:
        yield Finding(
            severity="warning",
            text=f"retention.ram_mib allows {gib(parked)} of memory for parked states, but only "
            f"{gib(max(0, left))} would be free: lower it to {max(0, left // 2) >> 20}",
        )
    if profile.model.threads > host.physical_cores:
        yield Finding(
            severity="warning",
            text=f"model.threads is {profile.model.threads}, above the {host.physical_cores} physical cores, "
            "which slows llama.cpp down: set it to 0",
        )
    for folder, free in host.disk_free.items():
        if free < _MIN_DISK:
            yield Finding(
                severity="warning",
                text=f"the disk of {folder} has {gib(free)} left: free some, or move the folder with "
                "HF_HOME (models) or XDG_CACHE_HOME (cache)",
            )
