"""Addresses, and what errors mean to a user."""

import httpx
import pytest

from astraea_local.tui.connection import is_address, reason


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "https://llm.lan/", "http://[::1]:8080"])
def test_addresses(url: str) -> None:
    assert is_address(url)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "ftp://a", "http://", "http://[::1", "http://a:99999", "a:8080"]
)
def test_what_is_no_address(url: str) -> None:
    assert not is_address(url)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"), "SSL_CERT_FILE"),
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, it is not valid for 'a'"),
            "another name",
        ),
        (httpx.ConnectError("[SSL] record layer failure"), "write http://"),
        (httpx.ConnectError("All connection attempts failed"), "no server answers"),
        (httpx.RemoteProtocolError("illegal"), "the connection broke (RemoteProtocolError)"),
    ],
)
def test_errors_say_what_to_do(error: httpx.HTTPError, words: str) -> None:
    assert words in reason(error)
