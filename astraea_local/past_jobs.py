"""Jobs of the history, a page at a time: what the history screen, its endpoint and its command show.

Reads the file that `history` writes, through a connection that cannot change it.
"""

import csv
import io
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from astraea_local.history import HistoryError, reported

SortKey = Literal[
    "job",
    "model",
    "started",
    "ended",
    "jct_s",
    "segments",
    "tool_s",
    "queued_s",
    "service_s",
    "prompt_tokens",
    "cached_tokens",
    "cached_share",
    "output_tokens",
    "preemptions",
    "outcome",
]
Order = Literal["asc", "desc"]


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Query(_Part):
    """Which jobs, and in which order."""

    limit: int = Field(default=100, ge=1, le=10_000)
    offset: int = Field(default=0, ge=0, le=2**31)
    sort: SortKey = "ended"
    order: Order = "desc"
    job: str = ""
    """Only jobs whose name contains this."""


class PastJob(_Part):
    """All recorded segments of one job in one life of the engine."""

    job: str
    parent: str | None
    kind: str
    model: str
    started: float
    """Unix time at which its first request arrived."""
    ended: float
    """Unix time at which its last answer ended."""
    jct_s: float
    """Job completion time: `ended` - `started`."""
    segments: int
    tool_s: float
    """Sum of its tool waits."""
    queued_s: float
    """Sum of the times until its segments first got a slot."""
    service_s: float
    """Sum of their prefill and decode times, pauses included."""
    prompt_tokens: int
    cached_tokens: int
    cached_share: float
    """`cached_tokens` of `prompt_tokens`, 0..1."""
    output_tokens: int
    preemptions: int
    outcome: str
    """Of its last segment: `stop`, `length` or `cancelled`."""


class Page(_Part):
    """Some of the jobs."""

    total: int
    """Jobs that the query finds in all."""
    limit: int
    offset: int
    jobs: list[PastJob]


_FIELDS = list(PastJob.model_fields)
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM segments WHERE instr(job, :job) GROUP BY run, job)"
_JOBS = """
SELECT
    job, parent, kind, model, started, ended, ended - started AS jct_s, segments, tool_s, queued_s, service_s,
    prompt_tokens, cached_tokens, 1.0 * cached_tokens / max(1, prompt_tokens) AS cached_share, output_tokens,
    preemptions, (SELECT outcome FROM segments WHERE id = latest) AS outcome
FROM (
    SELECT
        job,
        max(parent) AS parent,
        max(kind) AS kind,
        max(model) AS model,
        min(arrived) AS started,
        max(arrived + queued_s + prefill_s + decode_s) AS ended,
        count(*) AS segments,
        total(wait_s) AS tool_s,
        total(queued_s) AS queued_s,
        total(prefill_s + decode_s) AS service_s,
        sum(prompt_tokens) AS prompt_tokens,
        sum(cached_tokens) AS cached_tokens,
        sum(output_tokens) AS output_tokens,
        sum(preemptions) AS preemptions,
        max(id) AS latest
    FROM segments WHERE instr(job, :job) GROUP BY run, job
)
ORDER BY {sort} {order}, latest {order} LIMIT :limit OFFSET :offset
"""


def read(path: Path, query: Query) -> Page:
    """The jobs that the query asks for; none when there is no file yet. Raises `HistoryError`."""
    if not path.exists():
        return Page(total=0, limit=query.limit, offset=query.offset, jobs=[])
    # `sort` and `order` are checked against the names above; everything else is bound.
    select = _JOBS.format(sort=query.sort, order=query.order)
    values = query.model_dump(include={"job", "limit", "offset"})
    with (
        reported(path),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            raise HistoryError(f"{path}: not a history of astraea-local")
        total = connection.execute(_COUNT, values).fetchone()[0]
        rows = connection.execute(select, values).fetchall()
    jobs = [PastJob.model_validate(dict(zip(_FIELDS, row, strict=True))) for row in rows]
    return Page(total=total, limit=query.limit, offset=query.offset, jobs=jobs)


def as_csv(jobs: list[PastJob]) -> str:
    """The jobs as CSV (RFC 4180) with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS)
    writer.writeheader()
    writer.writerows(job.model_dump() for job in jobs)
    return text.getvalue()
