"""What `calibrate` measured: one model, one machine, one set of settings; kept between runs.

A calibration is found again only when model, device, settings and llama.cpp are the ones it was measured
with. Anything else about its file (damaged, of another version, not readable) means: there is none.
"""

import hashlib
import importlib.metadata
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from astraea_local.profile import KvType, Profile
from astraea_local.scheduler.speeds import Speeds

_logger = logging.getLogger(__name__)

Layout = Literal["per_slot", "unified"]

BUDGET_S = 75.0
"""Time that a calibration takes unless told otherwise; loading the model comes on top."""

_MIB = 1 << 20
# So much slower may a step be in the unified layout before its freedom is not worth it.
_TAX_ACCEPTED = 0.05
_BUSY = 0.1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Settings(_Record):
    """The part of a profile that speeds depend on.

    Threads are part of the device ("all cores" is a number there). Both layouts are measured.
    """

    type_k: KvType
    type_v: KvType
    flash_attention: str
    gpu_layers: int
    main_gpu: int
    split: str
    context: int
    """Cells in total."""
    slots: int
    batch: int
    ubatch: int

    @classmethod
    def of(cls, profile: Profile) -> "Settings":
        """The settings of a profile."""
        model, context = profile.model, profile.context
        return cls(
            type_k=profile.kv.type_k,
            type_v=profile.kv.type_v,
            flash_attention=model.flash_attention,
            gpu_layers=model.gpu_layers,
            main_gpu=model.main_gpu,
            split=model.split,
            context=context.size,
            slots=context.slots,
            batch=context.batch,
            ubatch=context.ubatch,
        )


class Key(_Record):
    """What a calibration is valid for."""

    fingerprint: str
    """Of the model file, see `fingerprint`."""
    device: str
    """See `engine.speed.device_of`."""
    settings: Settings
    llama_cpp: str
    """Version of llama-cpp-python."""


class PrefillRow(_Record):
    """A batch of `new` prompt tokens behind `past` ones of the same sequence."""

    new: int
    past: int
    seconds: float


class StepRow(_Record):
    """A step in which `segments` yield a token each; their contexts have `tokens` together."""

    segments: int
    tokens: int
    seconds: float


class ResidencyRow(_Record):
    """A step of one segment beside `idle` resident tokens of others."""

    idle: int
    seconds: float


class LayoutTimes(_Record):
    """Everything that differs between the two KV layouts."""

    steps: tuple[StepRow, ...]
    residency: tuple[ResidencyRow, ...]
    """The first is without idle tokens, the last with the most."""
    speeds: Speeds

    @property
    def longest(self) -> int:
        """Tokens of the longest context that was decoded at."""
        return max(row.tokens // row.segments for row in self.steps)

    @model_validator(mode="after")
    def _speeds_are_usable(self) -> "LayoutTimes":
        s = self.speeds
        rates = (s.save_bytes_s, s.restore_bytes_s, s.disk_write_bytes_s, s.disk_read_bytes_s)
        if not all(math.isfinite(v) and v >= 0 for v in astuple(s)) or not all(rates):
            raise ValueError("speeds must be finite, times not negative, and rates positive")
        if s.decode_step(1, 1) <= 0 or s.prefill_token_s <= 0:
            raise ValueError("steps and prompt tokens must take time")
        return self


class Copies(_Record):
    """Bytes per second of moving KV states; None where it could not be measured."""

    save: float
    restore: float
    disk_write: float | None = None
    disk_read: float | None = None


class Calibration(_Record):
    """Tables as they were measured, and the `Speeds` that were fitted to them."""

    version: Literal[1] = 1
    """Of this file's form."""
    key: Key
    model: str
    """Name of the file, for the reader."""
    taken_at: float
    """Unix time."""
    took_s: float
    others: float
    """Share of the machine's CPU time that other processes used meanwhile, 0..1."""
    layout: Layout
    """The layout that the settings lead to."""
    prefill: tuple[PrefillRow, ...]
    layouts: dict[Layout, LayoutTimes]
    copies: Copies
    prefill_error: float
    """Median relative distance between the table and what `Speeds` makes of it."""
    step_error: float
    """The same for decode steps in both layouts."""

    @model_validator(mode="after")
    def _has_its_layout(self) -> "Calibration":
        if self.layout not in self.layouts:
            raise ValueError("the layout of the settings was not measured")
        return self

    @property
    def speeds(self) -> Speeds:
        """In that layout."""
        return self.layouts[self.layout].speeds

    def speeds_in(self, layout: Layout) -> Speeds | None:
        """In that layout; None when this model cannot have it."""
        return self.layouts[layout].speeds if layout in self.layouts else None

    @property
    def preferred_layout(self) -> Layout:
        """The better one for this machine, provided that a slot of the other has enough context.

        Asked with a pool that is full: half of the slots run, the rest waits. `unified` unless that
        makes a step noticeably slower, since it lets a job be as long as the pool. Where one of the two
        was not measured far enough to compare them, the present one.
        """
        slots, cells = self.key.settings.slots, self.key.settings.context
        running = max(1, slots // 2)
        tokens = cells * running // slots
        unified, per_slot = self.layouts.get("unified"), self.layouts.get("per_slot")
        if unified is None or per_slot is None or not unified.residency[-1].idle:
            return self.layout
        if 2 * unified.longest < per_slot.longest or 2 * per_slot.longest < unified.longest:
            return self.layout

        def step(speeds: Speeds) -> float:
            return speeds.decode_step(running, tokens) + (cells - tokens) * speeds.idle_token_s

        limit = (1 + _TAX_ACCEPTED) * step(per_slot.speeds)
        return "unified" if step(unified.speeds) <= limit else "per_slot"


def fingerprint(model_path: Path) -> str:
    """Tells model files apart: by size, and by the first MiB (which starts with the header) and the last.

    The rest is left unread: weights of the same shape run at the same speed. Raises `OSError`.
    """
    digest = hashlib.blake2b(digest_size=16)
    with model_path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(size.to_bytes(8, "little"))
        for start in (0, max(0, size - _MIB)):
            file.seek(start)
            digest.update(file.read(_MIB))
    return digest.hexdigest()


def key_of(model_path: Path, profile: Profile, device: str) -> Key:
    """What a calibration made now would be valid for. Raises `OSError`."""
    return Key(
        fingerprint=fingerprint(model_path),
        device=device,
        settings=Settings.of(profile),
        llama_cpp=importlib.metadata.version("llama-cpp-python"),
    )


def path_for(key: Key, folder: Path | None = None) -> Path:
    """The file of that key's calibration, whether it exists or not; by default in the user's state folder."""
    name = hashlib.blake2b(key.model_dump_json().encode(), digest_size=16).hexdigest()
    return (folder or platformdirs.user_state_path("astraea-local") / "calibrations") / f"{name}.json"


def save(calibration: Calibration, folder: Path | None = None) -> Path:
    """Stores it, in place of an older one with the same key; returns the file. Raises `OSError`."""
    path = path_for(calibration.key, folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(calibration.model_dump_json(indent=2))
        return Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(model_path: Path, profile: Profile, device: str, folder: Path | None = None) -> Calibration | None:
    """The calibration of this model with these settings on this device, if there is a usable one."""
    try:
        key = key_of(model_path, profile, device)
        path = path_for(key, folder)
        return Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        pass
    except OSError as error:
        _logger.warning("the calibration cannot be read: %s", error)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        _logger.warning("%s is ignored: %s; run `astraea-local calibrate` again", path, fault["msg"])
    return None


def summary(calibration: Calibration) -> Iterator[tuple[str, str]]:
    """The figures that matter to a user, as (what, value) lines."""
    sizes = {row.new for row in calibration.prefill}
    for row in calibration.prefill:
        if row.new == max(sizes) or (row.new == min(sizes) and row.past == 0):
            yield f"prefill {row.new:,} behind {row.past:,}", f"{row.new / row.seconds:,.0f} tokens/s"
    for layout, times in calibration.layouts.items():
        for each in sorted({row.tokens // row.segments for row in times.steps}):
            rows = [row for row in times.steps if row.tokens // row.segments == each]
            rates = " / ".join(f"{row.segments / row.seconds:,.0f}" for row in rows)
            widths = " / ".join(str(row.segments) for row in rows)
            yield f"decode {layout}, contexts of {each:,}", f"{rates} tokens/s at {widths} wide"
    for layout, times in calibration.layouts.items():
        alone, most = times.residency[0], times.residency[-1]
        tax = times.speeds.idle_token_s * most.idle
        yield (
            f"residency tax {layout}",
            f"{tax * 1000:+.1f} ms a step ({tax / alone.seconds:+.0%}) beside {most.idle:,} idle tokens",
        )
    yield "layout", f"now {calibration.layout}; by speed, auto should prefer {calibration.preferred_layout}"
    copies = calibration.copies
    yield "KV to RAM and back", f"{_rate(copies.save)}, {_rate(copies.restore)}"
    yield "KV to disk and back", f"{_rate(copies.disk_write)}, {_rate(copies.disk_read)}"
    errors = f"prefill {calibration.prefill_error:.1%}, decode {calibration.step_error:.1%}"
    yield "fit, median error", errors
    yield "taken", f"in {calibration.took_s:.0f} s on {calibration.key.device}"
    if calibration.others > _BUSY:
        yield "busy machine", f"others used {calibration.others:.0%} of the CPU: repeat this when it is quiet"


def _rate(bytes_s: float | None) -> str:
    return "not measured" if bytes_s is None else f"{bytes_s / 1e9:.2f} GB/s"
