"""StateFrame: one picture of a running server, the only thing that monitors read.

Served at `/astraea/v1/state` and streamed at `/astraea/v1/events`; `ps`, the TUI and /metrics use it.
Times are seconds on the engine's monotonic clock unless a name says otherwise; sizes are tokens or bytes
as named.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FRAME_VERSION = 2

JobState = Literal["queued", "prefill", "decode", "preempted", "waiting", "done"]
EventLevel = Literal["debug", "info", "warning", "error"]
KvTier = Literal["slot", "ram", "disk", "none"]
PressureLevel = Literal["low", "normal", "high", "critical"]


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ServerInfo(_Part):
    """What is being hosted; constant while the engine lives."""

    version: str
    model: str
    model_class: str
    profile: str
    policy: str
    layout: str
    slots: int
    context: int
    """KV cells in total."""
    job_context: int
    """Most tokens one job may hold."""
    offloaded: str
    """llama.cpp's statement of the layers on the GPU."""
    pid: int
    """Process id of the engine."""
    quant: str = ""
    """Quantization as the file names it, `Q4_1`."""
    parameters: int = 0
    """Weights of the model."""
    retention: str = ""
    """Retention policy."""


class JobRow(_Part):
    """One agent."""

    job: str
    parent: str | None = None
    state: JobState
    kind: str = ""
    """Family of jobs that begin alike; their history predicts this one."""
    bound: Literal["-", "io", "compute"] = "-"
    """What it spends its time on by its behaviour so far: tools or the model."""
    tool: str = ""
    """The tool it waits for or came back from, when its name is known."""
    tool_s: float = 0.0
    """Time in its tools so far."""
    queue: int
    """Level of its multi-level queue, 0 first."""
    tokens: int
    """Tokens of its context."""
    attained: int
    """Token cost received so far: prefilled + decoded."""
    segments: int
    kv: KvTier
    kv_tokens: int
    waited_s: float
    """Queue time of all its segments."""
    since_s: float
    """Seconds in the present state."""
    reason: str = ""
    """Why the scheduler did what it did last."""
    priority: int = 0
    created_s: float = 0.0
    """Seconds since its first request."""
    prompt_tokens: int = 0
    """Prompt tokens of all its segments."""
    cached_tokens: int = 0
    """Of those, taken from KV."""
    output_tokens: int = 0
    kv_bytes: int = 0
    """Size of its KV where it is."""
    kv_shared: int = 0
    """Tokens of it that are stored once for it and others, whose states begin alike."""
    pinned: bool = False
    """A user asked that its KV stay in its slot."""
    wait_p50_s: float | None = None
    """Predicted length of its present tool wait; None when it does not wait."""
    wait_p90_s: float | None = None
    prefix_note: str = ""
    """Where and why its prompt last stopped repeating what is known, `prefix lost at token 1,204 of 3,300:
    tools changed`; empty while it always went on."""
    next_move: str = ""
    """What the retention policy will do with its KV next, `park to RAM`, and why."""
    next_move_s: float | None = None
    """Seconds until then; None when nothing is planned."""


class SegmentRow(_Part):
    """One LLM call that is queued or running."""

    segment: int
    job: str
    queue: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    waited_s: float
    service_s: float
    """Predicted remaining service."""
    score: float
    reason: str = ""


class SlotRow(_Part):
    """One llama.cpp sequence."""

    slot: int
    job: str | None
    segment: int | None
    phase: Literal["free", "resident", "prefill", "decode"]
    tokens: int
    done: int
    """Tokens computed of the running segment's prompt, or tokens decoded."""
    total: int
    """Tokens of the running segment's prompt, or its limit of output tokens."""
    tokens_s: float = 0.0
    """Tokens computed per second of late."""
    quantum: int = 0
    """Tokens received since it got the slot."""


class KvRow(_Part):
    """Where the KV states are."""

    cells_used: int
    cells_total: int
    ram_bytes: int
    ram_budget_bytes: int
    ram_states: int
    parks: int
    restores: int
    restore_failures: int
    evictions: int
    park_s: float
    restore_s: float
    disk_bytes: int = 0
    disk_budget_bytes: int = 0
    disk_states: int = 0
    disk_writes: int = 0
    disk_reads: int = 0
    disk_failures: int = 0
    """Files that could not be written, or were not what they should be."""
    prefetches: int = 0
    compactions: int = 0
    rebuilds: int = 0
    """Times that the context was made anew with another size."""
    shared_bytes: int = 0
    """Bytes that were not stored again because another job's state begins with them."""


class MemoryRow(_Part):
    """The machine's memory; None where there is nothing that tells."""

    gpu: str = ""
    """Name of the GPU; empty without one."""
    vram_total: int | None = None
    vram_free: int | None = None
    vram_ours: int | None = None
    vram_others: int | None = None
    """Used by other processes."""
    gpu_load: float | None = None
    """0..1."""
    gpu_temperature: float | None = None
    """Degrees Celsius."""
    weights_bytes: int = 0
    """Of the model."""
    context_bytes: int = 0
    """The KV buffer, which has its size whatever is in it."""
    ram_total: int = 0
    ram_available: int = 0
    ram_ours: int = 0
    """Resident memory of the engine process."""
    disk_total: int | None = None
    """Of the disk that holds parked states."""
    disk_free: int | None = None
    simulated: bool = False
    """The readings were given by `/astraea/v1/debug/pressure`."""
    pressure: dict[str, PressureLevel] = {}
    """Of `cells`, `vram`, `ram` and `disk`, those that are known."""
    watermarks: dict[str, float] = {}
    """Shares in use from which pressure is `high` and `critical`, and below which it is `low`."""


class CompletionRow(_Part):
    """Job completion times of those that ended, seconds."""

    finished: int = 0
    mean_s: float = 0.0
    p95_s: float = 0.0
    fcfs_mean_s: float | None = None
    """Estimate of what first come, first served would have needed for the same jobs."""
    fcfs_p95_s: float | None = None


class SpeedRow(_Part):
    """Measured speeds."""

    prefill_tokens_s: float
    decode_step_s: float
    decode_tokens_s: float
    width: int
    """Segments that the policy runs at once."""


class Totals(_Part):
    """Counters since the engine started."""

    steps: int = 0
    prompt_tokens: int = 0
    """Prompt tokens asked for."""
    cached_tokens: int = 0
    """Of those, taken from KV."""
    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    segments_finished: int = 0
    segments_failed: int = 0
    segments_cancelled: int = 0
    preemptions: int = 0


class Event(_Part):
    """One line of the event log."""

    id: int = 0
    """Counts up by one from line to line, also over restarts of the engine."""
    at: float
    """Unix time."""
    level: EventLevel
    text: str


class StateFrame(_Part):
    """The whole picture."""

    frame_version: int = FRAME_VERSION
    at: float
    """Unix time at which it was taken."""
    uptime_s: float
    status: Literal["loading", "ready", "restarting", "failed", "stopping", "paused"] = "ready"
    """`paused`: the GPU's memory was given back on request; requests wait."""
    scheduling_paused: bool = False
    """Nothing new is admitted, on request; what runs goes on."""
    restarts: int = 0
    server: ServerInfo
    jobs: list[JobRow]
    queue: list[SegmentRow]
    slots: list[SlotRow]
    kv: KvRow
    memory: MemoryRow = MemoryRow()
    completion: CompletionRow = CompletionRow()
    speed: SpeedRow
    steps: dict[str, float]
    """Where the time of a step goes: `mean_ms` in all, of it in llama.cpp, in sampling, in KV moves."""
    totals: Totals
    events: list[Event]
