"""When an engine that died is started again."""

from dataclasses import dataclass

_MAX_CRASHES = 5
# One that served so long begins to count anew.
_HEALTHY_S = 60.0
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0


@dataclass(slots=True)
class RestartPolicy:
    """Counts the crashes in a row; each makes the next start wait twice as long."""

    crashes: int = 0

    def died(self, served_s: float) -> None:
        """Counts a crash of an engine that had been serving for so long."""
        self.crashes = 1 if served_s > _HEALTHY_S else self.crashes + 1

    @property
    def delay_s(self) -> float | None:
        """Seconds until the next start; None when there were too many crashes to try again."""
        if self.crashes > _MAX_CRASHES:
            return None
        return float(min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (self.crashes - 1)))
