"""`POST /v1/embeddings`, which says that there are none."""

from fastapi import APIRouter

from astraea_local.api.errors import ApiError

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings() -> None:
    """Always an error: this server's one context generates text, and pools no embeddings."""
    text = "embeddings are not served by this model: its context generates text and pools none"
    # Not 501, which the SDKs would try again.
    raise ApiError(400, text, code="embeddings_not_served", param="model")
