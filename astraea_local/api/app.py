"""The FastAPI application."""

import time

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from astraea_local import __version__
from astraea_local.api import chat, completions, errors, openapi, server_state
from astraea_local.api.auth import ApiKeys
from astraea_local.api.gate import Gate
from astraea_local.api.service import Service


def create_app(service: Service, keys: ApiKeys) -> FastAPI:
    """The app over a service whose engine is running or about to."""
    app = FastAPI(title="astraea-local", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.service = service
    app.state.started_at = time.time()
    errors.install(app)
    app.include_router(chat.router)
    app.include_router(completions.router)
    app.include_router(server_state.router)
    openapi.install(app, keys_needed=bool(keys))
    settings = service.profile.server
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
