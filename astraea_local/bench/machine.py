"""The machines that the simulator knows: speeds, slots and KV cells of an engine."""

from collections.abc import Callable
from dataclasses import dataclass

from astraea_local.calibration import Calibration
from astraea_local.scheduler.speeds import Speeds

# As the engine: in the unified layout a slot's job and three that wait for their tools can be resident.
_SEQUENCES_PER_SLOT = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine has; tokens unless a name says otherwise."""

    name: str
    speeds: Speeds
    slots: int
    cells: int
    """KV cells in total."""
    sequences: int
    """KV states that can be resident at once: the slots themselves in the per-slot layout."""
    batch: int = 2048
    """Most tokens of a step."""
    max_step_s: float = 0.25
    shares: bool = True
    """Whether jobs of a kind share their common prefix."""
    signals_end: bool = True
    """Whether the engine learns that a job is over."""

    @property
    def job_context(self) -> int:
        """Most tokens of a job: with the slots' own states only, a slot's share, else all cells."""
        return self.cells // self.slots if self.sequences == self.slots else self.cells


def a100_8b(slots: int = 64) -> Machine:
    """An 8B model (Llama-3.1-8B, 16 bit) on one A100 of 40 GB.

    Speeds: InferCept's code (arXiv 2402.01869, GPT-J-6B on one A100) has 0.0463 ms for each token of a batch
    and 10 ms for a step; scaled by 8/6 they are 0.0617 and 13.3 ms. Attention of a decode step: the KV of
    a token is 32 layers x 8 heads x 128 x 2 x 2 bytes = 131,072 bytes, read at 1.55 TB/s. KV cells: 40 GB
    less 16 GB of weights and 4 GB of everything else, 20 GB. Copies to host memory: PCIe 4 x16, 25 GB/s.
    """
    kv_bytes = 32 * 8 * 128 * 2 * 2.0
    speeds = Speeds(
        prefill_token_s=0.0463e-3 * 8 / 6,
        step_base_s=10e-3 * 8 / 6,
        step_segment_s=0.0463e-3 * 8 / 6,
        step_token_s=kv_bytes / 1.55e12,
        save_bytes_s=25e9,
        restore_bytes_s=25e9,
        kv_token_bytes=kv_bytes,
    )
    cells = int(20e9 / kv_bytes)
    return Machine("a100-8b", speeds, slots, cells, sequences=100_000, shares=False)


def smollm2_cpu() -> Machine:
    """SmolLM2-135M (Q4_1) on two CPU cores as `calibrate` measured it, four slots of 2,048 tokens each."""
    speeds = Speeds(
        prefill_base_s=0.004,
        prefill_token_s=0.0033,
        prefill_pair_s=0.8e-6,
        step_base_s=0.0045,
        step_segment_s=0.0045,
        step_token_s=3.3e-6,
        save_bytes_s=4e9,
        restore_bytes_s=4e9,
    )
    return Machine("smollm2-cpu", speeds, slots=4, cells=8192, sequences=4, batch=512, max_step_s=0.8)


def calibrated(found: Calibration) -> Machine:
    """The machine that `calibrate` measured, in the layout that its settings lead to."""
    settings = found.key.settings
    unified = found.layout == "unified"
    return Machine(
        found.model,
        found.speeds,
        settings.slots,
        settings.context,
        sequences=settings.slots * (_SEQUENCES_PER_SLOT if unified else 1),
        batch=settings.batch,
    )


MACHINES: dict[str, Callable[[], Machine]] = {"a100-8b": a100_8b, "smollm2-cpu": smollm2_cpu}
