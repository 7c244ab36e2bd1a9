"""What front and engine say to each other: small dataclasses, sent in lists over a pipe."""

from dataclasses import dataclass, field
from typing import Literal

from astraea_local.engine.binding import Tokens
from astraea_local.engine.memory import Reading
from astraea_local.engine.sampling import SamplingParams, TokenLogprob
from astraea_local.profile import PolicyName


@dataclass(frozen=True, slots=True)
class Submit:
    """A segment to run."""

    segment: int
    job: str
    prompt: Tokens
    max_output: int
    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()
    """Special tokens whose text is part of the output; others leave none."""
    ignore_eos: bool = False
    stream: bool = True
    """False: text is sent once, at the end."""
    parent: str | None = None
    priority: int | None = None
    kind: str = ""
    """Family of jobs that begin alike."""
    tool: str = ""
    """The tool whose result the prompt brings, `name` or `name:verb`."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client of a segment is gone."""

    segment: int


@dataclass(frozen=True, slots=True)
class EndJob:
    """No further request of this job will come."""

    job: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The job's last answer ended in a call of this tool, `name` or `name:verb`."""

    job: str
    tool: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a job that its user should see: a line of the event log, and of the job itself."""

    job: str
    text: str


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Go on with another scheduling policy."""

    name: PolicyName


@dataclass(frozen=True, slots=True)
class SimulatePressure:
    """What `reading` knows replaces what is measured; None ends the simulation."""

    reading: Reading | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the loop and exit."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Go on with a context of another size; answered by `Reply`."""

    request: int
    size: int
    """KV cells in total."""
    slots: int


@dataclass(frozen=True, slots=True)
class Suspend:
    """Unload the model, or load it again; answered by `Reply`."""

    request: int
    on: bool


JobVerb = Literal["pin", "unpin", "park", "drop", "cancel", "priority"]


@dataclass(frozen=True, slots=True)
class JobAction:
    """Something that a user asks to be done with a job; answered by `Reply`."""

    request: int
    job: str
    action: JobVerb
    value: int = 0
    """The priority, for `priority`."""


@dataclass(frozen=True, slots=True)
class PauseScheduling:
    """Admit nothing new, or go on; answered by `Reply`."""

    request: int
    on: bool


@dataclass(frozen=True, slots=True)
class AskJob:
    """The detail of a job, as JSON in `Reply.text`."""

    request: int
    job: str


@dataclass(frozen=True, slots=True)
class Embed:
    """The embeddings of some inputs, in `Reply.data`: float32 of shape (inputs, n_embd), each of length 1."""

    request: int
    inputs: tuple[Tokens, ...]
    """Each of at least one and at most `Ready.embedding_tokens` tokens."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Nobody waits any more for the answer to this `Embed`; none will come."""

    request: int


CoreQuestion = JobAction | PauseScheduling | AskJob
Question = Resize | Suspend | Embed | CoreQuestion
ToEngine = (
    Submit | Cancel | EndJob | ToolCalled | Note | SetPolicy | SimulatePressure | Stop | Withdraw | Question
)


@dataclass(frozen=True, slots=True)
class Loading:
    """How much of the model is read, 0..1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine serves; facts that the front needs."""

    model: str
    model_class: str
    offloaded: str
    layout: str
    slots: int
    context: int
    job_context: int
    pid: int
    calibrated: bool = False
    """Whether a calibration of this model on this machine was found."""
    embedding_size: int = 0
    """Numbers in an embedding; 0 = the model gives none."""
    embedding_tokens: int = 0
    """Tokens that an input of an embedding may have."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The engine cannot start, and trying again would not help."""

    message: str


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token with its log-probability and the likeliest alternatives."""

    token: int
    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a running segment."""

    segment: int
    text: str
    logprobs: tuple[ChosenToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A segment got its slot for the first time; `cached` prompt tokens need no prefill."""

    segment: int
    cached: int
    queued_s: float


@dataclass(frozen=True, slots=True)
class Paused:
    """A running segment gave its slot away and waits; nothing of it is lost."""

    segment: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a segment."""

    segment: int
    reason: str
    """`stop`, `length` or `cancelled`."""
    text: str
    """Text not yet sent."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float
    logprobs: tuple[ChosenToken, ...] = ()
    output: tuple[int, ...] = field(default=())
    """Token ids of the output, so that the front can recognize the job's next request."""
    stop: str = ""
    """The stop string that ended the text, if one did."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A segment that cannot be completed."""

    segment: int
    message: str
    code: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A StateFrame as JSON; kept as bytes because most frames are only passed on."""

    json: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a `Question`."""

    request: int
    outcome: Literal["done", "unknown", "refused", "unavailable"]
    """`unknown`: there is no such job. `refused`: not possible as things are. `unavailable`: no engine is
    there to ask, or no model to do it with."""
    text: str
    """What was done, or why not."""
    data: bytes = b""
    """What was asked for, where it is not text."""


@dataclass(frozen=True, slots=True)
class Resized:
    """The context has another size now."""

    slots: int
    context: int
    job_context: int


ToFront = (
    Loading | Ready | LoadFailed | Delta | Started | Paused | Finished | Failed | Frame | Reply | Resized
)
