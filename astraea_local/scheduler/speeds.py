"""What work costs on this machine: the measured constants that every prediction is made of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measured on the running model (`calibrate`, or quickly at start), corrected online.

    Times are seconds. The defaults are a small model on two CPU cores.
    """

    prefill_base_s: float = 0.0
    """What a batch with prompt tokens costs whatever is in it."""
    prefill_token_s: float = 0.005
    """What each prompt token adds."""
    prefill_pair_s: float = 0.0
    """What each pair of a prompt token and a token before it adds: attention."""
    step_base_s: float = 0.004
    """What a decode step costs whatever is in it: reading the weights."""
    step_segment_s: float = 0.005
    """What each segment adds to it."""
    step_token_s: float = 3e-6
    """What each token of their contexts adds: attention."""
    idle_token_s: float = 0.0
    """What each resident token of jobs that do not run adds: the residency tax of a unified KV pool."""
    save_bytes_s: float = 4e9
    restore_bytes_s: float = 4e9
    disk_write_bytes_s: float = 0.5e9
    disk_read_bytes_s: float = 1e9
    kv_token_bytes: float = 23_052.0
    """Bytes of one token's KV state."""

    def decode_step(self, segments: int, tokens: float) -> float:
        """A step in which `segments` with `tokens` of context together yield one token each."""
        return self.step_base_s + segments * self.step_segment_s + tokens * self.step_token_s

    def prefill(self, new: int, past: int) -> float:
        """One batch of `new` prompt tokens behind `past` ones of the same sequence."""
        pairs = new * (past + 0.5 * new)
        return self.prefill_base_s + new * self.prefill_token_s + pairs * self.prefill_pair_s

    def prefill_rate(self, past: int) -> float:
        """Prompt tokens per second behind `past` ones, long batches assumed."""
        return 1.0 / (self.prefill_token_s + past * self.prefill_pair_s)

    def save(self, tokens: int) -> float:
        """Copying the KV state of `tokens` to host memory."""
        return tokens * self.kv_token_bytes / self.save_bytes_s

    def restore(self, tokens: int) -> float:
        """Copying the KV state of `tokens` back from host memory."""
        return tokens * self.kv_token_bytes / self.restore_bytes_s

    def disk_read(self, tokens: int) -> float:
        """Reading the KV state of `tokens` from disk into host memory."""
        return tokens * self.kv_token_bytes / self.disk_read_bytes_s
