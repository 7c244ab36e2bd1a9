"""JobDetail: the whole recent life of one job, for its timeline.

Served at `/astraea/v1/jobs/{job}`. Unlike in the StateFrame, moments are Unix times, so that they can be put
beside those of the history; durations are seconds, sizes are tokens.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from astraea_local.frame import JobState, KvTier

DETAIL_VERSION = 1

SpanKind = Literal["queued", "prefill", "decode", "paused", "tool", "parked"]


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Span(_Part):
    """A stretch of time in which a job did one thing."""

    kind: SpanKind
    """`tool`: it waits for its client, with its KV in a slot or nowhere. `parked`: the same, with its KV in
    RAM or on disk."""
    start: float
    end: float | None = None
    """None while it lasts."""
    segment: int | None = None
    """Whose it is; None between segments."""
    tier: KvTier | None = None
    """Where the KV was meanwhile, for `tool` and `parked`, as the frames showed it."""


class WaitDetail(_Part):
    """A tool wait, and what was predicted when it began."""

    tool: str = ""
    """`name` or `name:verb`; known at its end, from the next request."""
    start: float
    seconds: float
    """So far, while it lasts."""
    predicted_p50_s: float
    predicted_p90_s: float


class SegmentDetail(_Part):
    """One LLM call, and what was predicted when it came."""

    segment: int
    number: int
    """0 for the first of its job."""
    arrived: float
    ended: float | None = None
    outcome: str = "running"
    """Afterwards `stop`, `length`, `cancelled` or `failed`."""
    prompt_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that needed no prefill when it first got a slot."""
    output_tokens: int = 0
    predicted_output_p50: int
    predicted_output_p90: int
    waited_s: float = 0.0
    """Without a slot, queued or paused."""
    service_s: float = 0.0
    """In a slot."""
    predicted_service_s: float
    preemptions: int = 0
    reason: str = ""
    """What the scheduler said when it last admitted or paused it."""
    wait: WaitDetail | None = None
    """The tool wait before it; None for the first, or when segments overlap."""


class JobDetail(_Part):
    """One job."""

    detail_version: int = DETAIL_VERSION
    at: float
    """Unix time at which it was asked for."""
    job: str
    parent: str | None = None
    children: list[str] = []
    """Jobs that named this one as their parent."""
    state: JobState
    created: float
    segments: list[SegmentDetail]
    """Oldest first; only the latest are kept."""
    forgotten: int = 0
    """Earlier segments that are no longer kept."""
    spans: list[Span]
    """Of those segments and the waits between them, by start."""
    wait: WaitDetail | None = None
    """The present tool wait, with a prediction that knows how long it has lasted."""
