"""The places below the context: host memory, and the disk where the profile allows it."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from astraea_local import calibration
from astraea_local.engine.binding import Context
from astraea_local.engine.kv.arena import Allocate, BufferArena, page_locked, plain
from astraea_local.engine.kv.disk import DiskStore
from astraea_local.engine.kv.files import ModelIdentity
from astraea_local.engine.kv.folder import default_root
from astraea_local.engine.kv.spill import DiskTier
from astraea_local.engine.kv.transfer import Form
from astraea_local.profile import Profile


@dataclass(frozen=True, slots=True)
class Tiers:
    """RAM, and the disk if there is one."""

    arena: BufferArena
    allocate: Allocate
    disk: DiskTier | None = None


def ram_only(profile: Profile, allocate: Allocate = plain) -> Tiers:
    """Host memory within the profile's budget."""
    return Tiers(BufferArena(profile.retention.ram_mib << 20, allocate), allocate)


def open_tiers(
    profile: Profile,
    model_path: Path,
    context: Context,
    form: Form,
    *,
    on_gpu: bool,
    note: Callable[[str], None],
) -> Tiers:
    """Both tiers; what an earlier server left on disk is taken in.

    `on_gpu`: states come from a GPU, for which page-locked memory is faster where torch can give it.
    """
    tiers = ram_only(profile, (page_locked() if on_gpu else None) or plain)
    settings = profile.retention
    if not settings.disk_mib or not settings.ram_mib:
        # Files are read and written through buffers of the RAM tier.
        return tiers
    params = context.params
    layout = "unified" if params.unified else f"per_slot of {params.n_seq}"
    identity = ModelIdentity(
        fingerprint=calibration.fingerprint(model_path),
        type_k=params.type_k,
        type_v=params.type_v,
        v_transposed=form.v_transposed,
        form="rows" if form.by_rows else "whole",
        layout="any" if form.by_rows else f"{layout}, flash attention {params.flash_attention}",
        llama_cpp=importlib.metadata.version("llama-cpp-python"),
    )
    root = Path(settings.disk_path).expanduser() if settings.disk_path else default_root()
    store = DiskStore(root, identity, settings.disk_mib << 20, model=model_path.stem)
    disk = DiskTier(store, tiers.arena, note=note)
    disk.open()
    return Tiers(tiers.arena, tiers.allocate, disk)
