"""A job's life: its timeline, its segments, and the tree of its sub-agents."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from astraea_local.frame import JobRow
from astraea_local.job_detail import JobDetail, SegmentDetail, Span
from astraea_local.tui.render.palette import Palette
from astraea_local.tui.render.table import Column
from astraea_local.tui.render.units import calls, clean, count, fitted, percent, seconds

_LABEL = 9
_DEEPEST = 60
"""Columns by which the tree is indented at most."""
ROWS = ("queued", "prefill", "decode", "paused", "tool", "parked")
_TIERS = {"ram": "▓", "disk": "▒"}


def gantt(spans: Sequence[Span], now: float, span_s: float, palette: Palette, width: int) -> list[Text]:
    """A line for each kind of span over the last `span_s` seconds, and the axis below them."""
    room = max(1, width - _LABEL)
    start = now - span_s
    lines = []
    for kind in ROWS:
        mine = [span for span in spans if span.kind == kind]
        total = sum(max(0.0, (span.end or now) - max(start, span.start)) for span in mine)
        text = Text(
            fitted(kind, _LABEL), style=palette.dim if not total else palette.text, no_wrap=True, end=""
        )
        cells = [" "] * room
        for span in mine:
            _draw(cells, span, start, now, room)
        text.append("".join(cells), _style(kind, palette))
        lines.append(text)
    lines.append(Text(fitted("", _LABEL) + axis(span_s, room), style=palette.dim, no_wrap=True, end=""))
    return lines


def _draw(cells: list[str], span: Span, start: float, now: float, room: int) -> None:
    end = span.end if span.end is not None else now
    if end < start:
        return
    scale = room / max(1e-9, now - start)
    first = max(0, min(room - 1, int((span.start - start) * scale)))
    last = max(first + 1, min(room, round((end - start) * scale)))
    for cell in range(first, last):
        cells[cell] = _TIERS.get(span.tier or "", "█")


def _style(kind: str, palette: Palette) -> str:
    return palette.accent if kind == "parked" else palette.of_state(kind)


def axis(span_s: float, width: int) -> str:
    """Times before now under a timeline of that width: `5m00 ┊ 2m30 ┊ now`."""
    marks = max(1, min(6, width // 14))
    line = ""
    for index in range(marks):
        label = f"┊-{seconds(span_s * (1 - index / marks))}"
        line += fitted(label, width // marks)
    return fitted(line[: width - 4], width - 4) + "now┊" if width >= 8 else fitted("", width)


def _predicted(truth: float, low: float, high: float, palette: Palette) -> str:
    if truth > high:
        return palette.warn
    return palette.ok if truth <= low else palette.text


SEGMENTS: tuple[Column[SegmentDetail], ...] = (
    Column("#", 3, lambda s, p: (str(s.number), p.dim), right=True),
    Column("PROMPT", 6, lambda s, _: (count(s.prompt_tokens), ""), right=True),
    Column(
        "CACHED",
        6,
        lambda s, p: (percent(s.cached_tokens / s.prompt_tokens) if s.prompt_tokens else "-", p.kv),
        right=True,
    ),
    Column("OUTPUT", 6, lambda s, _: (count(s.output_tokens), ""), right=True),
    Column(
        "~P50 ≤P90",
        11,
        lambda s, p: (
            f"~{count(s.predicted_output_p50)} ≤{count(s.predicted_output_p90)}",
            _predicted(s.output_tokens, s.predicted_output_p50, s.predicted_output_p90, p),
        ),
        rank=3,
    ),
    Column("QUEUED", 6, lambda s, p: (seconds(s.waited_s), p.queued), right=True),
    Column("SERVICE", 7, lambda s, _: (seconds(s.service_s), ""), right=True),
    Column("PREDICTED", 9, lambda s, p: (f"~{seconds(s.predicted_service_s)}", p.dim), right=True, rank=2),
    Column(
        "TOOL BEFORE",
        12,
        lambda s, p: ("" if s.wait is None else s.wait.tool or "?", p.waiting),
        grow=1,
        rank=5,
    ),
    Column(
        "TOOK", 5, lambda s, _: ("" if s.wait is None else seconds(s.wait.seconds), ""), right=True, rank=4
    ),
    Column(
        "~P50 ≤P90",
        13,
        lambda s, p: (
            ("", "")
            if s.wait is None
            else (
                f"~{seconds(s.wait.predicted_p50_s)} ≤{seconds(s.wait.predicted_p90_s)}",
                _predicted(s.wait.seconds, s.wait.predicted_p50_s, s.wait.predicted_p90_s, p),
            )
        ),
        rank=6,
    ),
    Column("OUTCOME", 9, lambda s, p: (s.outcome, p.ok if s.outcome == "stop" else p.text), rank=1),
    Column("PRE", 3, lambda s, p: (str(s.preemptions or ""), p.preempted), right=True, rank=8),
    Column("REASON", 10, lambda s, p: (s.reason, p.dim), grow=3, rank=7),
)


def tree(jobs: Sequence[JobRow], detail: JobDetail, palette: Palette) -> list[Text]:
    """The job among its parent and its sub-agents; a family of one is no lines."""
    rows = {job.job: job for job in jobs}
    children: dict[str, list[str]] = {}
    for job in jobs:
        if job.parent is not None:
            children.setdefault(job.parent, []).append(job.job)
    children.setdefault(detail.job, []).extend(detail.children)
    root, above = detail.job, {detail.job}
    parent = detail.parent
    while parent is not None and parent not in above:
        root = parent
        above.add(parent)
        parent = rows[parent].parent if parent in rows else None
    lines = []
    for lead, name in _branches(root, children):
        text = Text(lead, style=palette.dim, no_wrap=True, end="")
        text.append(clean(name), f"{palette.accent} bold" if name == detail.job else palette.text)
        row = rows.get(name)
        state = "gone" if row is None else row.state
        text.append(f"  {state}", palette.of_state(state))
        if row is not None:
            text.append(f"  {calls(row.segments)}, {count(row.tokens)} tokens", palette.dim)
        lines.append(text)
    return lines if len(lines) > 1 else []


def _branches(root: str, children: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Each member once, from the root on, with what leads to it; no recursion: clients choose the depth."""
    seen: set[str] = set()
    left = [(root, "", "")]
    while left:
        name, lead, below = left.pop()
        if name in seen:
            continue
        seen.add(name)
        yield lead, name
        mine = list(dict.fromkeys(children.get(name, ())))
        ends = ["├─ "] * (len(mine) - 1) + ["└─ "]
        for child, end in reversed(list(zip(mine, ends, strict=False))):
            # Lines of ancestors that are this deep would be out of sight.
            inner = below + ("   " if end == "└─ " else "│  ") if len(below) < _DEEPEST else below
            left.append((child, below + end, inner))
