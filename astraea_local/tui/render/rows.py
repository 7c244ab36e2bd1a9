"""The columns of agents, queued segments, slots, parked states, history and events."""

from datetime import UTC, datetime

from astraea_local.frame import Event, JobRow, SegmentRow, SlotRow
from astraea_local.past_jobs import PastJob
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.table import Cell, Column
from astraea_local.tui.render.units import count, percent, rate, seconds, size

_METER = 8


def kv_cell(job: JobRow, palette: Palette) -> Cell:
    """Tier and size of a job's KV."""
    if job.kv == "none":
        return "-", palette.dim
    amount = size(job.kv_bytes) if job.kv_bytes else count(job.kv_tokens)
    style = palette.kv if job.kv == "slot" else palette.accent
    return f"{'⚲' if job.pinned else ''}{job.kv} {amount}", style


def since_cell(job: JobRow, palette: Palette) -> Cell:
    """How long it is in its state; a tool against what was predicted: `3.2s ~4s ≤20s`."""
    text = seconds(job.since_s)
    if job.state != "waiting" or job.wait_p50_s is None:
        return text, ""
    text += f" ~{seconds(job.wait_p50_s)}"
    if job.wait_p90_s is not None:
        text += f" ≤{seconds(job.wait_p90_s)}"
    overdue = job.wait_p90_s is not None and job.since_s > job.wait_p90_s
    return text, palette.warn if overdue else ""


def move_cell(job: JobRow, _palette: Palette) -> Cell:
    """When something will be done with the KV, and what; else the scheduler's last reason."""
    if not job.next_move:
        return job.reason, ""
    when = "" if job.next_move_s is None else f"in {seconds(max(0.0, job.next_move_s))}: "
    return when + job.next_move, ""


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "-"


def _uncached(segment: SegmentRow) -> int:
    # A preempted one has answers of its own among what is cached.
    return max(0, segment.prompt_tokens - segment.cached_tokens)


def _progress(slot: SlotRow, palette: Palette) -> Cell:
    if slot.segment is None:
        return "", ""
    share = min(1.0, slot.done / slot.total) if slot.total else 0.0
    full = round(share * _METER)
    style = palette.of_state(slot.phase)
    return "█" * full + "░" * (_METER - full) + f" {count(slot.done)}/{count(slot.total)}", style


AGENTS: tuple[Column[JobRow], ...] = (
    Column("AGENT", 13, lambda j, p: (j.job, p.text), grow=2, most=32, sort="job"),
    Column("STATE", 9, lambda j, p: (j.state, p.of_state(j.state)), sort="state"),
    Column("Q", 2, lambda j, p: (str(j.queue), p.dim), rank=5, sort="queue"),
    Column(
        "PRI",
        3,
        lambda j, p: (f"{j.priority:+d}" if j.priority else "", p.accent),
        right=True,
        rank=10,
        sort="priority",
    ),
    Column("TOKENS", 6, lambda j, _: (count(j.tokens), ""), right=True, rank=4, sort="tokens"),
    Column("KV", 11, kv_cell, rank=1, sort="kv_bytes"),
    Column("CALLS", 5, lambda j, _: (str(j.segments), ""), right=True, rank=8, sort="segments"),
    Column("CACHED", 6, lambda j, _: (_share(j.cached_tokens, j.prompt_tokens), ""), right=True, rank=9),
    Column("QUEUED", 6, lambda j, _: (seconds(j.waited_s), ""), right=True, rank=7, sort="waited_s"),
    Column("AGE", 5, lambda j, p: (seconds(j.created_s), p.dim), right=True, rank=11, sort="created_s"),
    Column("TOOL", 12, lambda j, p: (j.tool, p.waiting), grow=1, rank=3, sort="tool"),
    Column("SINCE ~P50 ≤P90", 18, since_cell, rank=2, sort="since_s"),
    Column("NEXT, OR REASON", 24, move_cell, grow=4, rank=6),
)
QUEUED: tuple[Column[SegmentRow], ...] = (
    Column("Q", 2, lambda s, p: (str(s.queue), p.dim)),
    Column("AGENT", 10, lambda s, p: (s.job, p.text), grow=2, most=32),
    Column(
        "SCORE",
        6,
        lambda s, p: (f"{s.score:.2f}" if s.score < 1000 else count(s.score), p.accent),
        right=True,
    ),
    Column("WAITED", 6, lambda s, p: (seconds(s.waited_s), p.queued), right=True),
    Column("NEEDS", 5, lambda s, _: (seconds(s.service_s), ""), right=True),
    Column("NEW", 5, lambda s, _: (count(_uncached(s)), ""), right=True, rank=2),
    Column("REASON", 10, lambda s, p: (s.reason, p.dim), grow=3, rank=1),
)
SLOTS: tuple[Column[SlotRow], ...] = (
    Column("#", 2, lambda s, p: (str(s.slot), p.dim), right=True),
    Column("AGENT", 10, lambda s, p: (s.job or "", p.text if s.segment is not None else p.dim), grow=1),
    Column("PHASE", 8, lambda s, p: (s.phase, p.of_state(s.phase) if s.segment is not None else p.dim)),
    Column("PROGRESS", 19, _progress, rank=1),
    Column("TOK/S", 5, lambda s, _: (rate(s.tokens_s) if s.segment is not None else "", ""), right=True),
    Column("TOKENS", 6, lambda s, _: (count(s.tokens) if s.tokens else "", ""), right=True, rank=2),
    Column("QUANTUM", 7, lambda s, p: (count(s.quantum) if s.quantum else "", p.dim), right=True, rank=3),
)
KV_STATES: tuple[Column[JobRow], ...] = (
    Column("AGENT", 12, lambda j, p: (j.job, p.text), grow=2, most=40, sort="job"),
    Column("WHERE", 6, lambda j, p: (j.kv, p.kv if j.kv == "slot" else p.accent)),
    Column("TOKENS", 7, lambda j, _: (count(j.kv_tokens), ""), right=True),
    Column("SIZE", 6, lambda j, _: (size(j.kv_bytes) if j.kv_bytes else "-", ""), right=True),
    Column("SHARED", 6, lambda j, _: (count(j.kv_shared) if j.kv_shared else "", ""), right=True, rank=2),
    Column("PIN", 3, lambda j, p: ("⚲" if j.pinned else "", p.accent), rank=2),
    Column("STATE", 9, lambda j, p: (j.state, p.of_state(j.state))),
    Column("SINCE", 5, lambda j, _: (seconds(j.since_s), ""), right=True, rank=1),
    Column("NEXT MOVE", 12, lambda j, p: move_cell(j, p) if j.next_move else ("", ""), grow=3, rank=3),
)
FINISHED: tuple[Column[PastJob], ...] = (
    Column("AGENT", 12, lambda j, p: (j.job, p.text), grow=2, most=40, sort="job"),
    Column("STARTED", 11, lambda j, p: (clock(j.started, day=True), p.dim), rank=4, sort="started"),
    Column("JCT", 5, lambda j, p: (seconds(j.jct_s), p.accent), right=True, sort="jct_s"),
    Column("QUEUED", 6, lambda j, _: (seconds(j.queued_s), ""), right=True, sort="queued_s"),
    Column("TOOLS", 5, lambda j, _: (seconds(j.tool_s), ""), right=True, rank=2, sort="tool_s"),
    Column("CALLS", 5, lambda j, _: (str(j.segments), ""), right=True, rank=1, sort="segments"),
    Column("PROMPT", 6, lambda j, _: (count(j.prompt_tokens), ""), right=True, rank=3, sort="prompt_tokens"),
    Column(
        "CACHED",
        6,
        lambda j, _: (_share(j.cached_tokens, j.prompt_tokens), ""),
        right=True,
        rank=5,
        sort="cached_share",
    ),
    Column("OUTPUT", 6, lambda j, _: (count(j.output_tokens), ""), right=True, rank=6, sort="output_tokens"),
    Column(
        "OUTCOME",
        9,
        lambda j, p: (j.outcome, p.ok if j.outcome == "stop" else p.warn),
        rank=7,
        sort="outcome",
    ),
    Column("PARENT", 8, lambda j, p: (j.parent or "", p.dim), grow=1, rank=9),
    Column("MODEL", 10, lambda j, p: (j.model, p.dim), grow=1, rank=8, sort="model"),
)
EVENTS: tuple[Column[Event], ...] = (
    Column("TIME", 8, lambda e, p: (clock(e.at), p.dim)),
    Column("LEVEL", 7, lambda e, p: (e.level, p.of_level(e.level)), rank=1),
    Column("EVENT", 20, lambda e, p: (e.text, p.of_level(e.level)), grow=1),
)


def clock(at: float, *, day: bool = False) -> str:
    """Local time of a Unix time."""
    try:
        moment = datetime.fromtimestamp(at, UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return "?"
    return moment.strftime("%m-%d %H:%M" if day else "%H:%M:%S")
