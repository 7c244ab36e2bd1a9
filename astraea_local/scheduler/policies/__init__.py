"""One file per policy; `make` finds them by name."""

from astraea_local.profile import SchedulerSettings
from astraea_local.scheduler.policies.astraea import Astraea
from astraea_local.scheduler.policies.astraea_paper import AstraeaPaper
from astraea_local.scheduler.policies.base import Policy
from astraea_local.scheduler.policies.continuum import Continuum
from astraea_local.scheduler.policies.fcfs import Fcfs
from astraea_local.scheduler.policies.hrrn import Hrrn
from astraea_local.scheduler.policies.mlfq import Mlfq
from astraea_local.scheduler.policies.plas import Plas
from astraea_local.scheduler.policies.sjf import Sjf
from astraea_local.scheduler.predictor import Predictor

__all__ = ["POLICIES", "Policy", "make"]

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Astraea, AstraeaPaper, Fcfs, Sjf, Hrrn, Mlfq, Plas, Continuum)
}


def make(name: str, settings: SchedulerSettings, predictor: Predictor) -> Policy:
    """The policy of that name. Raises `ValueError` naming the known ones."""
    if name not in POLICIES:
        raise ValueError(f"no policy named {name!r}: choose one of {', '.join(POLICIES)}")
    return POLICIES[name](settings, predictor)
