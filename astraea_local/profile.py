"""Profiles: every setting of a server, in one TOML file, checked before anything starts.

A profile is read with `load`; a fault is reported as `ProfileError` with the file, the line and what
to write instead. Shipped profiles are found by name, others by path.
"""

import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
RetentionName = Literal["adaptive", "paper", "keep", "drop", "lru"]
PolicyName = Literal["astraea", "astraea_paper", "fcfs", "sjf", "hrrn", "mlfq", "plas", "continuum"]

ToolFormatName = Literal[
    "auto",
    "hermes",
    "json",
    "llama3",
    "pythonic",
    "mistral",
    "mistral_nemo",
    "qwen_coder",
    "harmony",
    "deepseek",
    "deepseek_v31",
    "dsml",
    "dsml_v4",
    "kimi",
    "glm",
    "glm_47",
    "minimax",
    "minicpm",
    "seed",
    "functionary",
    "cohere",
    "nemotron",
    "tool_calls",
    "lfm2",
    "granite",
    "firefunction",
    "gigachat",
]


class ProfileError(Exception):
    """A profile that cannot be used; the message is one line naming file, line, field and remedy."""


class _Section(BaseModel):
    # TOML has types of its own, so "8080" for a port or true for a count is a slip, not a spelling.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSettings(_Section):
    source: str = "demo"
    """`demo` (the embedded SmolLM2), a path to a GGUF file, or `hf:OWNER/REPO[:QUANT]`."""
    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers offloaded to the GPU; -1 = all, 0 = none."""
    main_gpu: int = Field(default=0, ge=0)
    """Index of the GPU that is used when there are several and `split` is `none`."""
    split: Literal["none", "layer"] = "none"
    """`none`: one GPU holds everything; `layer`: the layers are spread over all GPUs."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """`auto` lets llama.cpp decide by device; a quantized V cache needs it."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0 = the physical cores."""
    tool_format: ToolFormatName = "auto"
    """How the model writes tool calls; `auto` = as its chat template says (docs/structured.md)."""
    chat_template: str = ""
    """File with a chat template (Jinja) that takes the place of the model's own."""


class ContextSettings(_Section):
    size: int = Field(default=8192, ge=256)
    """KV cells in total, shared by the slots."""
    slots: int = Field(default=4, ge=1, le=64)
    """Segments that can run at the same time."""
    batch: int = Field(default=512, ge=32, le=16384)
    """Most tokens given to llama.cpp in one step."""
    ubatch: int = Field(default=512, ge=32, le=16384)
    """Tokens per compute graph; larger is faster at prefill and takes more memory."""

    @model_validator(mode="after")
    def _ubatch_fits(self) -> "ContextSettings":
        if self.ubatch > self.batch:
            raise ValueError(f"context.ubatch ({self.ubatch}) must not exceed context.batch ({self.batch})")
        return self


class KvSettings(_Section):
    layout: Literal["auto", "per_slot", "unified"] = "auto"
    """`per_slot`: no residency tax, a job is limited to size / slots. `unified`: one pool, any split.
    `auto`: per_slot when size / slots reaches 2,048 tokens or the model's own context, else unified."""
    type_k: KvType = "f16"
    """Element type of the K cache."""
    type_v: KvType = "f16"
    """Element type of the V cache; quantized types need flash attention."""
    max_stall_ms: float = Field(default=30.0, gt=0)
    """Longest pause, in milliseconds, that moving KV may cause to a running stream in one step."""


class SchedulerSettings(_Section):
    policy: PolicyName = "astraea"
    """Which segment runs next; `astraea-local policy --help` says what each does."""
    max_step_ms: float = Field(default=250.0, gt=0)
    """Longest step, in milliseconds, that a prefill may cause while others decode."""
    level_tokens: tuple[int, ...] = Field(default=(32768, 131072, 524288), strict=False)
    """Attained token cost at which a job falls to the next queue; one more queue than numbers."""
    aging_ratio: float = Field(default=8.0, gt=1)
    """Its square times its service, plus thrice the queue, is what a segment waits before it is urgent."""
    head_start_s: float = Field(default=40.0, ge=0)
    """Seconds of waiting that each segment is credited with; 0 = by response ratio, large = by least work."""
    preempt_factor: float = Field(default=2.0, gt=1)
    """A waiting segment may take a slot when its score beats the running one's by this factor."""
    min_quantum_tokens: int = Field(default=64, ge=1)
    """Tokens a segment receives before it may be preempted."""
    plas_level_tokens: tuple[int, ...] = Field(default=(2048, 8192, 32768), strict=False)
    """`plas`: attained token cost at which a job falls to the next queue."""
    paper_quota_tokens: tuple[int, ...] = Field(default=(512, 1024, 2048), strict=False)
    """`astraea_paper` and `mlfq`: token quota of each queue but the last."""
    paper_aging_ratio: float = Field(default=16.0, gt=1)
    """`astraea_paper`: response ratio at which a job of the last queue returns to the first."""
    paper_refill: bool = True
    """`astraea_paper`: whether slots freed by a batch are refilled at once, or only when all of it ended."""
    paper_watermark: float = Field(default=0.95, gt=0, le=1)
    """`astraea_paper`: share of the KV cells in use from which idle KV is no longer simply kept."""
    predicted_output_tokens: int = Field(default=80, ge=1)
    """Median output length assumed of jobs of which nothing is known."""

    @field_validator("level_tokens", "plas_level_tokens", "paper_quota_tokens")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(b <= a for a, b in pairwise(value)) or any(v <= 0 for v in value):
            raise ValueError("must be positive numbers in ascending order, for example [8192, 32768]")
        return value


class RetentionSettings(_Section):
    policy: RetentionName = "adaptive"
    """Where the KV of a job goes that waits for its tool: by least expected delay (`adaptive`), by Astraea's
    watermark and equations 5-7 (`paper`), overwritten when needed (`keep`), never kept (`drop`), or the
    longest unused to RAM (`lru`)."""
    ram_mib: int = Field(default=1024, ge=0)
    """Budget for KV states parked in host memory, MiB; 0 keeps none there."""
    disk_mib: int = Field(default=4096, ge=0)
    """Budget for KV states parked on disk, MiB; 0 keeps none there."""
    disk_path: str = ""
    """Folder of the parked states; empty = the user's cache folder."""
    min_tokens: int = Field(default=64, ge=1)
    """Shorter contexts are recomputed instead of parked."""
    write_behind_s: float = Field(default=10.0, ge=0)
    """A parked state not used for so long is written to disk too, so that a crash does not lose it."""
    prefetch: bool = True
    """Bring parked KV back before its job is expected, when there is room."""


class MemorySettings(_Section):
    poll_ms: int = Field(default=500, ge=50, le=60000)
    """Time between two readings of memory."""
    low: float = Field(default=0.80, gt=0, lt=1)
    """Share of a memory in use below which there is no pressure."""
    high: float = Field(default=0.90, gt=0, lt=1)
    """Share in use from which states are moved away from it."""
    critical: float = Field(default=0.95, gt=0, lt=1)
    """Share in use from which the context is made smaller, where other processes need the VRAM."""
    elastic: bool = True
    """Make the context smaller under critical VRAM pressure by others, and larger again afterwards."""
    calm_s: float = Field(default=60.0, ge=0)
    """How long there has to be no pressure before the context grows back."""
    min_context: int = Field(default=1024, ge=256)
    """The context is not made smaller than this by pressure."""
    debug_pressure: bool = False
    """Accept simulated readings at `/astraea/v1/debug/pressure`."""

    @model_validator(mode="after")
    def _in_order(self) -> "MemorySettings":
        if not self.low < self.high < self.critical:
            raise ValueError(
                "memory.low, memory.high and memory.critical must ascend, as in 0.80, 0.90, 0.95"
            )
        return self


class PredictionSettings(_Section):
    history: bool = True
    """Keep lengths, times and tool names (no text) of all segments in SQLite, and learn from them."""
    learned: bool = True
    """Where torch is installed, train a model on the history while idle, and use it if it predicts better."""


class ServerSettings(_Section):
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach needs an API key."""
    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port; 0 takes a free one and prints it."""
    max_queue: int = Field(default=256, ge=1)
    """Requests queued or running; beyond it clients get 429 with Retry-After."""
    keepalive_s: float = Field(default=5.0, gt=0)
    """Seconds between SSE comments while a stream has nothing to say."""
    stream_interval_ms: float = Field(default=30.0, ge=0)
    """Least milliseconds between two pieces of a stream; the first token is sent at once. 0: each by itself,
    which slows decoding down where llama.cpp uses all cores."""
    drain_s: float = Field(default=10.0, ge=0)
    """Seconds that a stop waits for running requests before they are cancelled."""
    job_idle_s: float = Field(default=1800.0, gt=0)
    """A job that sent nothing for so long is forgotten (its KV is kept as long as room allows)."""
    max_body_mib: int = Field(default=16, ge=1)
    """Largest request body, MiB."""
    responses_kept: int = Field(default=512, ge=0)
    """Responses that `previous_response_id` can continue; 0 stores none."""
    responses_mib: int = Field(default=64, ge=1)
    """Memory for them, MiB; each is counted with its whole conversation."""
    responses_age_s: float = Field(default=86400.0, gt=0)
    """How long a response is stored."""
    max_queue_per_key: int = Field(default=128, ge=1)
    """Of `max_queue`, what the clients of one API key may take."""
    max_connections: int = Field(default=512, ge=1)
    """Open connections; one more is answered with 503 and closed."""
    request_timeout_s: float = Field(default=3600.0, ge=0)
    """Seconds after which a request is given up with 504, waiting included; 0 = never."""
    read_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a client may take to send the headers of a request, and again for its body."""
    slow_reader_s: float = Field(default=30.0, gt=0)
    """Seconds after which a client that does not read its answer is cut off."""
    allowed_hosts: tuple[str, ...] = Field(default=(), strict=False)
    """Names besides this machine's own that clients may call the server by, as in `["llm.lan"]`."""
    cors_origins: tuple[str, ...] = Field(default=(), strict=False)
    """Web pages of other sites that may use the server, as in `["https://app.example"]`; `"*"` = all."""
    api_key_file: str = ""
    """File of `name: key` lines; with keys, every endpoint but /health needs one."""
    tls_cert: str = ""
    """PEM file of the certificate chain; with it the server speaks https."""
    tls_key: str = ""
    """PEM file of the certificate's private key."""
    log_prompts: bool = False
    """Write every prompt to the log. Without it no text of a request or an answer is ever logged."""

    @model_validator(mode="after")
    def _tls_is_a_pair(self) -> "ServerSettings":
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("server.tls_cert and server.tls_key belong together: set both or none")
        return self

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is no origin: write scheme and host, as in https://app.example")
        return value


class Profile(_Section):
    name: str = "custom"
    """Name shown in logs and the UI."""
    description: str = ""
    """What the profile is for, one line."""
    model: ModelSettings = ModelSettings()
    """What is loaded, and where its layers go."""
    context: ContextSettings = ContextSettings()
    """How much context there is, and how many run at once."""
    kv: KvSettings = KvSettings()
    """Form of the KV cache."""
    scheduler: SchedulerSettings = SchedulerSettings()
    """Who runs next."""
    prediction: PredictionSettings = PredictionSettings()
    """How lengths and waits are predicted."""
    retention: RetentionSettings = RetentionSettings()
    """What happens to KV that is not being used."""
    memory: MemorySettings = MemorySettings()
    """When memory is scarce, and what is done about it."""
    server: ServerSettings = ServerSettings()
    """The HTTP side."""

    @model_validator(mode="after")
    def _v_cache_needs_flash_attention(self) -> "Profile":
        if self.kv.type_v not in ("f32", "f16", "bf16") and self.model.flash_attention == "off":
            raise ValueError(
                f"kv.type_v {self.kv.type_v!r} needs flash attention: "
                'set model.flash_attention to "auto" or kv.type_v to "f16"'
            )
        return self


def shipped() -> dict[str, Path]:
    """The profiles that come with the package, by name."""
    package = Path(__file__).parent
    # A wheel carries them inside the package; an editable checkout keeps them beside it.
    folder = next((d for d in (package / "_profiles", package.parent / "profiles") if d.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.toml"))}


def load(name_or_path: str) -> Profile:
    """The profile of that shipped name, or of that file. Raises `ProfileError`."""
    known = shipped()
    path = known.get(name_or_path)
    if path is None:
        path = Path(name_or_path).expanduser()
        if path.suffix != ".toml" and not path.exists():
            raise ProfileError(
                f"no profile named {name_or_path!r}: use one of {', '.join(known)} or a path to a .toml file"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such profile file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Profile:
    """The profile written in `text`; `path` is only named in errors. Raises `ProfileError`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{path}: not valid TOML: {error}") from None
    data.setdefault("name", path.stem)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError("; ".join(_faults(error, text, path))) from None


def override(profile: Profile, changes: dict[str, Any]) -> Profile:
    """A copy with dotted fields replaced (`{"server.port": 9000}`). Raises `ProfileError`."""
    data = profile.model_dump()
    for dotted, value in changes.items():
        *sections, field = dotted.split(".")
        target = data
        for section in sections:
            if not isinstance(target.get(section), dict):
                target[section] = {}
            target = target[section]
        target[field] = value
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError("; ".join(_faults(error, "", None))) from None


def fields(profile: Profile) -> Iterator[tuple[str, Any, str]]:
    """Every setting as (dotted name, value, documentation), in file order."""
    for name, info in Profile.model_fields.items():
        value = getattr(profile, name)
        if isinstance(value, _Section):
            for inner, inner_info in type(value).model_fields.items():
                yield f"{name}.{inner}", getattr(value, inner), inner_info.description or ""
        else:
            yield name, value, info.description or ""


def _faults(error: ValidationError, text: str, path: Path | None) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        keys = [str(part) for part in fault["loc"]]
        where = "" if path is None else f"{path}:{_line_of(text, keys)}: "
        dotted = ".".join(keys)
        if fault["type"] == "extra_forbidden":
            yield f"{where}unknown field {dotted!r}: known here are {', '.join(_siblings(keys))}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            yield f"{where}{dotted}: {message}" if dotted else f"{where}{message}"


def _siblings(keys: list[str]) -> list[str]:
    section: type[BaseModel] = Profile
    for key in keys[:-1]:
        annotation = section.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return list(section.model_fields)


def _line_of(text: str, keys: list[str]) -> int:
    """Line (1-based) of a key; of its table when the key is absent. tomllib keeps no positions."""
    table: list[str] = []
    best = 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if table == keys[: len(table)]:
                best = number
        elif assigned := re.match(r"\s*([\w.\-\"']+)\s*=", line):
            here = table + [part.strip().strip("\"'") for part in assigned[1].split(".")]
            if here == keys[: len(here)]:
                return number
    return best
