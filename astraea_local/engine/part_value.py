"""What a parked stretch of KV is worth: the seconds that losing it would cost."""

import math
from typing import Protocol

from astraea_local.engine.kv.parts import Part
from astraea_local.scheduler.speeds import Speeds

# A finished job's state is worth little, and half of that after so long.
_UNOWNED = 0.05
_HALF_LIFE_S = 600.0


class Facts(Protocol):
    """What has to be known of jobs and the machine."""

    def speeds(self) -> Speeds:
        """Measured speeds."""

    def is_useful(self, job: str | None) -> bool:
        """Whether the job is expected to come back."""


def part_value(part: Part, facts: Facts, now: float) -> float:
    """Seconds to compute it again, weighed by how likely its conversation goes on."""
    return _likely(part, facts, now) * facts.speeds().prefill(len(part.tokens), part.start)


def _likely(part: Part, facts: Facts, now: float) -> float:
    below = [part]
    for each in below:
        if any(facts.is_useful(job) for job in each.owners):
            return 1.0
        below.extend(each.children)
    age = max(0.0, now - part.last_used)
    return _UNOWNED * math.exp2(-age / _HALF_LIFE_S)
