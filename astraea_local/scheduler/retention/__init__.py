"""Where KV goes that no running segment uses: one file per policy; `make` finds them by name."""

from collections.abc import Callable

from astraea_local.profile import RetentionSettings
from astraea_local.scheduler.retention.adaptive import Adaptive
from astraea_local.scheduler.retention.base import (
    Eviction,
    IdleKv,
    Level,
    Move,
    ParkedKv,
    Retention,
    Situation,
    Verdict,
)
from astraea_local.scheduler.retention.drop import Drop
from astraea_local.scheduler.retention.keep import Keep
from astraea_local.scheduler.retention.lru import Lru
from astraea_local.scheduler.retention.paper import Paper
from astraea_local.scheduler.retention.ttl import Ttl, best_ttl

__all__ = [
    "RETENTIONS",
    "Eviction",
    "IdleKv",
    "Level",
    "Move",
    "ParkedKv",
    "Retention",
    "Situation",
    "Verdict",
    "best_ttl",
    "make",
]

RETENTIONS: dict[str, type[Retention]] = {each.name: each for each in (Drop, Keep, Lru, Paper, Ttl, Adaptive)}


def make(name: str, settings: RetentionSettings, *, watermark: float) -> Retention:
    """The policy of that name. Raises `ValueError` naming the known ones.

    `watermark`: share (0..1) of the cells in use from which `paper` no longer simply keeps.
    """
    if name not in RETENTIONS:
        raise ValueError(f"no retention named {name!r}: choose one of {', '.join(RETENTIONS)}")
    special: dict[str, Callable[[], Retention]] = {
        "paper": lambda: Paper(watermark),
        "adaptive": lambda: Adaptive(settings.min_tokens, settings.prefetch),
    }
    return special.get(name, RETENTIONS[name])()
