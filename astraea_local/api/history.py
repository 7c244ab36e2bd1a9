"""Past jobs over HTTP."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from astraea_local import history, past_jobs
from astraea_local.api.errors import ApiError
from astraea_local.past_jobs import Page

router = APIRouter()

_CSV = "text/csv"


class HistoryQuery(past_jobs.Query):
    """Which jobs, in which order and form."""

    format: Literal["json", "csv"] | None = None
    """Without it the `Accept` header decides; JSON when that does not either."""


@router.get("/astraea/v1/history", response_model=Page, responses={200: {"content": {_CSV: {}}}})
async def past(request: Request, query: Annotated[HistoryQuery, Query()]) -> Response:
    """Jobs of which a segment has ended, from the history file: this server's and earlier ones'."""
    try:
        # Grouping a long history takes longer than other requests should wait.
        page = await asyncio.to_thread(past_jobs.read, history.default_path(), query)
    except history.HistoryError as error:
        raise ApiError(503, str(error), code="history_unavailable") from None
    wanted = query.format or ("csv" if _CSV in request.headers.get("accept", "") else "json")
    headers = {"Vary": "Accept", "X-Total-Count": str(page.total)}
    if wanted == "csv":
        headers["Content-Disposition"] = 'attachment; filename="astraea-history.csv"'
        return Response(past_jobs.as_csv(page.jobs), media_type=_CSV, headers=headers)
    return Response(page.model_dump_json(), media_type="application/json", headers=headers)
