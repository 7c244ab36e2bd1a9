"""How fast counters grow of late."""

from collections import deque
from collections.abc import Mapping

_WINDOW_S = 2.0


class Rates:
    """Is shown counters now and then; tells by how much each grew per second within about two seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[int, int]]] = deque()

    def look(self, now: float, counters: Mapping[int, int]) -> None:
        """Takes in the present values; counters that are not named are forgotten."""
        self._seen.append((now, dict(counters)))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_S:
            self._seen.popleft()

    def of(self, counter: int) -> float:
        """Growth per second; 0 of one that was seen less than twice."""
        now, last = self._seen[-1] if self._seen else (0.0, {})
        for then, values in self._seen:
            if counter in values and then < now and counter in last:
                return (last[counter] - values[counter]) / (now - then)
        return 0.0
