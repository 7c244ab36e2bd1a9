"""One file per policy; `make` finds them by name."""

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.policies.astraea import Astraea
from astraea_local.scheduler.policies.base import Policy, Rank
from astraea_local.scheduler.policies.fcfs import Fcfs

__all__ = ["POLICIES", "Policy", "Rank", "make"]

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Astraea, Fcfs)}


def make(name: str, settings: SchedulerSettings) -> Policy:
    """The policy of that name. Raises `ValueError` naming the known ones."""
    if name not in POLICIES:
        raise ValueError(f"no policy named {name!r}: choose one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](settings)
