"""The FastAPI application."""

import time

from fastapi import FastAPI

from astraea_local import __version__
from astraea_local.api import actions, chat, completions, debug, elastic, errors, history, server_state
from astraea_local.api.limits import BodyLimit, LocalHosts
from astraea_local.api.service import Service


def create_app(service: Service) -> FastAPI:
    """The app over a service whose engine is running or about to."""
    app = FastAPI(title="astraea-local", version=__version__, docs_url="/docs", redoc_url=None)
    app.state.service = service
    app.state.started_at = time.time()
    errors.install(app)
    app.include_router(chat.router)
    app.include_router(completions.router)
    app.include_router(server_state.router)
    app.include_router(elastic.router)
    app.include_router(debug.router)
    app.include_router(actions.router)
    app.include_router(history.router)
    app.add_middleware(BodyLimit, limit=service.profile.server.max_body_mib << 20)
    app.add_middleware(LocalHosts)
    return app
