"""What holding, moving and recomputing KV costs: seconds of delay, of its job and of all others together."""

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.retention.base import IdleKv, Move, ParkedKv, Situation

# A conversation that came to its end goes on once in five times, and seldom before five minutes.
_RETURNS = 0.2
_FINISHED = Distribution.of([300.0])
# A place that is free now, or a pool that is nearly full, is asked for within so long.
_ASKED_S = 30.0
_ASKS = {"low": 0.0, "normal": 0.0, "high": 1.0, "critical": 2.0}


def rest_of(kv: IdleKv | ParkedKv, now: float) -> Distribution | None:
    """What is left of its wait, given how long it has lasted; None when no wait is known."""
    wait = _wait_of(kv)
    return None if wait is None else wait.rest(max(0.0, now - kv.since))


def mean_rest(kv: IdleKv, now: float) -> float | None:
    """The mean of `rest_of`, seconds."""
    wait = _wait_of(kv)
    return None if wait is None else wait.remaining(max(0.0, now - kv.since))


def _wait_of(kv: IdleKv | ParkedKv) -> Distribution | None:
    return _FINISHED if isinstance(kv, IdleKv) and not kv.useful else kv.wait


def holding(kv: IdleKv, at: Situation) -> float:
    """Delay per second (s/s) that an idle resident state inflicts on others.

    The tax of attending over it, and, where places run short, the copying for which who asks for its place
    would have to wait. Otherwise an idle state is in nobody's way: it gives way when it is asked to.
    """
    return _tax(kv.tokens, at) + _asks(kv.tokens, at) * at.speeds.save(kv.new_tokens)


def _tax(tokens: int, at: Situation) -> float:
    if not at.taxed or not at.running or at.step_s <= 0.0:
        return 0.0
    return at.speeds.idle_token_s * tokens * at.running / at.step_s


def _asks(tokens: int, at: Situation) -> float:
    """How often in a second the place of so many tokens is expected to be asked for."""
    return _ASKS[at.cells_level] / _ASKED_S * min(1.0, tokens / max(1, at.cells_total))


def moves(kv: IdleKv, at: Situation, min_tokens: int) -> dict[Move, float]:
    """Expected delay (s) of each move that is possible, its way back included.

    While it is saved the running segments stand still, and while it is brought back or recomputed its own
    job does as well; from disk, its own job waits for the reading.
    """
    speeds, back = at.speeds, 1.0 if kv.useful else _RETURNS
    everyone = at.running + 1
    found = {Move.DROP: back * speeds.prefill(kv.tokens, 0) * everyone}
    size = kv.new_tokens * speeds.kv_token_bytes
    parkable = at.can_park and kv.tokens >= min_tokens
    parked = speeds.save(kv.new_tokens) * max(1, at.running) + back * speeds.restore(kv.tokens) * everyone
    if not kv.new_tokens or (parkable and not at.scarce and size <= at.ram_free):
        found[Move.RAM] = parked
    if kv.new_tokens and parkable and size <= at.disk_free:
        found[Move.DISK] = parked + back * speeds.disk_read(kv.tokens)
    return found


def cheapest(kv: IdleKv, at: Situation, min_tokens: int, rate: float = 0.0) -> tuple[Move, float]:
    """The move of least delay (s), its place being free for others after the copy and the next step."""

    def total(item: tuple[Move, float]) -> float:
        move, delay = item
        copied = 0.0 if move is Move.DROP else at.speeds.save(kv.new_tokens)
        return delay + rate * (at.step_s + copied)

    best = min(moves(kv, at, min_tokens).items(), key=total)
    return best[0], total(best)


def hold_for(rest: Distribution, rate: float, move_s: float) -> tuple[float, float]:
    """Seconds to hold at most, and the expected delay (s) of doing so.

    Of the times t at which the wait may end, and 0, the one with the least
    `rate x E[min(wait, t)] + P(wait > t) x move_s`; between them it only grows.
    """
    best, least = 0.0, move_s
    for point, capped, beyond in rest.thresholds():
        delay = rate * capped + beyond * move_s
        if delay <= least:
            best, least = point, delay
    return best, least


def fetch_after(kv: ParkedKv, rest: Distribution, at: Situation) -> float:
    """Seconds after which bringing it back costs least: early, its place is held for nothing; late, its job
    waits for it.
    """
    latency = at.speeds.restore(kv.tokens) + (at.speeds.disk_read(kv.tokens) if kv.on_disk else 0.0)
    # Whoever takes the place meanwhile makes the copy futile.
    rate = _tax(kv.tokens, at) + at.speeds.restore(kv.tokens) * (at.running + 1) / _ASKED_S

    def delay(start: float) -> float:
        ready = start + latency
        late = latency - rest.capped(ready) + rest.capped(start)
        return rate * (rest.mean - rest.capped(ready)) + late

    starts = {0.0, *rest.points, *(point - latency for point in rest.points if point > latency)}
    return min(starts, key=lambda start: (delay(start), start))
