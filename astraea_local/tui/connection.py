"""How a server is reached: the client, whom it trusts, and what errors mean to a user."""

import json
import ssl
from pathlib import Path

import httpx

CONNECT_S = 3.0
_SILENCE_S = 8.0
_MOST_PORT = 65_535


def is_address(url: str) -> bool:
    """Whether a server could be there."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 0) <= _MOST_PORT


def open_client(url: str, api_key: str | None, certificate: Path | None = None) -> httpx.AsyncClient:
    """A client for everything the UI asks; gives up on a server that is silent.

    `certificate` is that of a server which we started: it is trusted, and nothing else is. Raises
    `OSError` when it cannot be read.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(_SILENCE_S, connect=CONNECT_S)
    trusted = _trusted(url, certificate)
    # trust_env: a proxy from the environment cannot reach this computer's own server.
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, verify=trusted, trust_env=False)


def _trusted(url: str, certificate: Path | None) -> ssl.SSLContext:
    if not url.startswith("https:"):
        # Reading the world's authorities takes longer than all else here.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate is None:
        return httpx.create_ssl_context(trust_env=True)
    context = ssl.create_default_context(cafile=certificate)
    # It is issued for the name that others know this computer by, by an authority we may not have.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def reason(error: Exception) -> str:
    """What an error of httpx means to a user, one line."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return "the server wants an API key: give --api-key or set ASTRAEA_API_KEY"
        if status == httpx.codes.NOT_FOUND:
            return "this is not an astraea-local server"
        return message_of(error.response)
    if fault := tls_fault(error):
        return fault
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "no server answers"
    if isinstance(error, httpx.ReadTimeout):
        return f"the server said nothing for {_SILENCE_S:.0f} s"
    return f"the connection broke ({type(error).__name__})"


def tls_fault(error: Exception) -> str:
    """What is wrong with a connection that was refused for its encryption; empty for other errors."""
    text = str(error)
    if "mismatch" in text:
        return "its certificate is for another name: use that one"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted: name the file of its authority in SSL_CERT_FILE"
    return "it does not speak TLS: write http:// instead of https://" if "[SSL" in text else ""


def message_of(response: httpx.Response) -> str:
    """What an error body says, else the status."""
    try:
        return str(json.loads(response.content)["error"]["message"])
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return f"the server answered with HTTP {response.status_code}"
