"""The FastAPI application."""

import time

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from astraea_local import __version__
from astraea_local.api import (
    actions,
    chat,
    completions,
    debug,
    elastic,
    embeddings,
    errors,
    history,
    openapi,
    server_state,
)
from astraea_local.api.auth import ApiKeys
from astraea_local.api.gate import Gate
from astraea_local.api.messages.router import router as messages
from astraea_local.api.responses.router import router as responses
from astraea_local.api.responses.store import ResponseStore
from astraea_local.api.service import Service


def create_app(service: Service, keys: ApiKeys) -> FastAPI:
    """The app over a service whose engine is running or about to."""
    app = FastAPI(title="astraea-local", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.service = service
    app.state.started_at = time.time()
    settings = service.profile.server
    app.state.responses = ResponseStore(
        entries=settings.responses_kept,
        max_bytes=settings.responses_mib << 20,
        age_s=settings.responses_age_s,
        clock=time.monotonic,
    )
    errors.install(app)
    app.include_router(chat.router)
    app.include_router(completions.router)
    app.include_router(responses)
    app.include_router(messages)
    app.include_router(embeddings.router)
    app.include_router(server_state.router)
    app.include_router(elastic.router)
    app.include_router(debug.router)
    app.include_router(actions.router)
    app.include_router(history.router)
    openapi.install(app, keys_needed=bool(keys))
    app.add_middleware(Gate, settings=settings, keys=keys, on_refused=service.metrics.refused)
    if settings.cors_origins:
        # Outside of the gate: a page can only read a refusal that names its origin.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("X-Astraea-Job", "Retry-After"),
        )
    return app
