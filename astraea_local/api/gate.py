"""What every request passes before an endpoint sees it: name, origin, key, size."""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from astraea_local.api.auth import ApiKeys
from astraea_local.api.errors import ApiError
from astraea_local.api.limits import MAX_HEADERS, Bodies, replay
from astraea_local.api.origins import Names
from astraea_local.profile import ServerSettings

_WITHOUT_BODY = frozenset(("GET", "HEAD", "OPTIONS"))


class Gate:
    """ASGI middleware; the tenant is left in the request's state."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, keys: ApiKeys, on_refused: Callable[[str], None]
    ) -> None:
        """`on_refused` gets the code of each refusal."""
        self._app = app
        self._keys = keys
        self._names = Names(settings.host, settings.allowed_hosts, settings.cors_origins)
        self._bodies = Bodies(settings.max_body_mib << 20, settings.read_timeout_s)
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        body: bytes | None = None
        try:
            self._check(scope, headers)
            if scope["method"] not in _WITHOUT_BODY:
                body = await self._bodies.read(headers.get("content-length", ""), receive)
                if body is None:
                    return
                receive = replay(body, receive)
        except ApiError as error:
            self._on_refused(error.code or str(error.status))
            await error.response(scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if body is not None:
                self._bodies.release(body)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if len(scope["headers"]) > MAX_HEADERS:
            raise ApiError(431, f"the request has more than {MAX_HEADERS} headers", code="too_many_headers")
        self._names.check(headers)
        scope.setdefault("state", {})["tenant"] = self._keys.tenant(scope["path"], headers)
