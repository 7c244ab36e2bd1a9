"""API keys: who may ask, and which tenant is asking. Only digests of the keys are kept."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from astraea_local.api.errors import ApiError

# A monitor has to see that the server lives without holding a key.
_OPEN_PATHS = frozenset(("/health",))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SHORT = 16


class KeyFault(Exception):
    """Keys that cannot be used; the message is one line that repeats none of them."""


class ApiKeys:
    """The keys of a server; without any, everybody is let in."""

    def __init__(self, entries: Iterable[tuple[str, str]] = ()) -> None:
        """`entries` are (name, key); names may be empty. Raises `KeyFault`."""
        named = list(entries)
        self._digests: dict[bytes, str] = {}
        self.short = any(len(key) < _SHORT for _name, key in named)
        """Whether a key is so short that it can be guessed."""
        for number, (name, key) in enumerate(named, start=1):
            # A single key needs no name: there is nobody to be told apart from.
            tenant = name or (f"key-{number}" if len(named) > 1 else "")
            if tenant in self._digests.values():
                raise KeyFault(f"two API keys are named {tenant!r}: give each a name of its own")
            self._digests[_digest(key)] = tenant
        if len(self._digests) < len(named):
            raise KeyFault("the same API key is given twice: give each name a key of its own")

    def __bool__(self) -> bool:
        return bool(self._digests)

    @property
    def tenants(self) -> list[str]:
        """The names."""
        return list(self._digests.values())

    def tenant(self, path: str, headers: Mapping[str, str]) -> str:
        """The name of the key that a request brings, "" where none is needed. Raises `ApiError` 401."""
        if not self._digests or path in _OPEN_PATHS:
            return ""
        sent = _sent(headers)
        if sent is None:
            text = "no API key: send it as `Authorization: Bearer KEY`, `x-api-key` or `api-key`"
            raise ApiError(401, text, code="missing_api_key", headers={"WWW-Authenticate": "Bearer"})
        found = None
        digest = _digest(sent)
        # All are compared, each in constant time: how long it takes tells nothing about any key.
        for known, name in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            text = "the API key is not one of this server's"
            raise ApiError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return found


def entries_of(options: Iterable[str], file: str, environment: str) -> list[tuple[str, str]]:
    """(name, key) pairs from the command line, an environment variable, and a file of `name: key` lines.

    Each is `KEY` or `NAME:KEY`; the variable may hold several, separated by spaces. Raises `KeyFault`.
    """
    entries = [_entry(text, "--api-key") for text in options]
    entries += [_entry(text, "ASTRAEA_API_KEY") for text in environment.split()]
    if file:
        entries += _read(Path(file).expanduser())
    return entries


def gather(options: Iterable[str], file: str, environment: str) -> ApiKeys:
    """The keys of `entries_of`. Raises `KeyFault`."""
    return ApiKeys(entries_of(options, file, environment))


def readable_by_others(file: str) -> bool:
    """Whether other users of this machine can read the file of keys."""
    return bool(Path(file).expanduser().stat().st_mode & 0o077)


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeyFault(f"{path}: cannot read API keys: {reason}") from None
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), start=1)]
    entries = [_entry(line, f"{path}:{n}") for n, line in lines if line and not line.startswith("#")]
    if not entries:
        raise KeyFault(f"{path}: holds no API key: write lines of the form `name: key`")
    return entries


def _entry(text: str, where: str) -> tuple[str, str]:
    name, colon, key = text.rpartition(":")
    name, key = name.strip(), key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise KeyFault(f"{where}: a key is printable ASCII without spaces, as in `name: key`")
    if colon and not _NAME.fullmatch(name):
        raise KeyFault(f"{where}: a name has letters, digits, `.`, `_` and `-`, 32 at most")
    return name, key


def _sent(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key") or headers.get("api-key") or None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
