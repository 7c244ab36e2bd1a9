"""StateFrame: one picture of a running server, the only thing that monitors read.

Served at `/astraea/v1/state` and streamed at `/astraea/v1/events`; `ps`, the TUI and /metrics use it.
Times are seconds on the engine's monotonic clock unless a name says otherwise; sizes are tokens or bytes
as named.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FRAME_VERSION = 1

JobState = Literal["queued", "prefill", "decode", "preempted", "waiting", "done"]
EventLevel = Literal["debug", "info", "warning", "error"]
KvTier = Literal["slot", "ram", "disk", "none"]


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
    status: Literal["loading", "ready", "restarting", "failed", "stopping"] = "ready"
    restarts: int = 0
    server: ServerInfo
    jobs: list[JobRow]
    queue: list[SegmentRow]
    slots: list[SlotRow]
    kv: KvRow
    speed: SpeedRow
    steps: dict[str, float]
    """Where the time of a step goes: `mean_ms` in all, of it in llama.cpp, in sampling, in KV moves."""
    totals: Totals
    events: list[Event]
