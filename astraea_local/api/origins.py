"""Which names the server answers to, and which web pages may ask it.

A page whose own name resolves to this machine sends that name as `Host`; a page of another site sends its
`Origin`. Neither may use a server that its visitor runs.
"""

import ipaddress
import re
import socket
from collections.abc import Mapping

from astraea_local.api.errors import ApiError

_PORT = re.compile(r":\d*$")


class Names:
    """The rules of one server."""

    def __init__(self, host: str, allowed_hosts: tuple[str, ...], origins: tuple[str, ...]) -> None:
        """`host` is the address listened on, `origins` the foreign pages that are welcome (`*` = all)."""
        self._loopback_only = is_loopback(host)
        names = {"localhost", *(name.lower() for name in allowed_hosts)}
        if not self._loopback_only:
            here = socket.gethostname().lower()
            names |= {here, here.partition(".")[0], f"{here.partition('.')[0]}.local", host.lower()}
        self._names = frozenset(names)
        self._origins = frozenset(origins)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises `ApiError` for a foreign `Host` (400) or `Origin` (403)."""
        host = headers.get("host", "")
        if not self._is_known(_PORT.sub("", host)):
            text = f"Host {host!r} is not a name of this server: connect to localhost or 127.0.0.1"
            if not self._loopback_only:
                text = f"Host {host!r} is not a name of this server: add it to server.allowed_hosts"
            raise ApiError(400, text, code="foreign_host")
        origin = headers.get("origin")
        if origin is None or not self._origins.isdisjoint((origin, "*")):
            return
        if origin.partition("://")[2].lower() != host.lower():
            text = f"Origin {origin!r} is another site: add it to server.cors_origins to let it in"
            raise ApiError(403, text, code="foreign_origin")

    def _is_known(self, name: str) -> bool:
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        # An address is not a name that somebody else could make resolve to this machine.
        return address.is_loopback or not self._loopback_only or name in self._names


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
