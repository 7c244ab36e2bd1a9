import pytest
from starlette.datastructures import Headers

from astraea_local.api.errors import ApiError
from astraea_local.api.origins import Names

LOCAL = Names("127.0.0.1", (), ())
LAN = Names("0.0.0.0", ("llm.lan",), ("https://app.example",))


def _check(names: Names, **headers: str) -> str:
    """The code of the refusal, "" when the request may pass."""
    try:
        names.check(Headers(headers))
    except ApiError as error:
        return error.code or ""
    return ""


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.0.0.2", "[::1]:8080"])
def test_this_machines_own_names_are_known_everywhere(host: str) -> None:
    assert _check(LOCAL, host=host) == _check(LAN, host=host) == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.evil"]
)
def test_a_name_that_was_made_to_resolve_here_is_refused(host: str) -> None:
    assert _check(LOCAL, host=host) == _check(LAN, host=host) == "foreign_host"


@pytest.mark.parametrize("host", ["10.0.0.1", "192.168.1.5:8080", "[fe80::1]", "llm.lan", "LLM.lan:8080"])
def test_a_server_on_the_network_is_known_by_address_and_by_given_names(host: str) -> None:
    assert _check(LAN, host=host) == ""
    assert _check(LOCAL, host=host) == "foreign_host"


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("https://app.example", ""),
        ("http://127.0.0.1:8080", ""),
        ("http://127.0.0.1:9999", "foreign_origin"),
        ("http://app.example", "foreign_origin"),
        ("https://app.example.evil", "foreign_origin"),
        ("null", "foreign_origin"),
        ("", "foreign_origin"),
    ],
)
def test_only_listed_pages_and_the_servers_own_may_ask(origin: str, code: str) -> None:
    assert _check(LAN, host="127.0.0.1:8080", origin=origin) == code


def test_a_star_lets_every_page_in() -> None:
    assert _check(Names("127.0.0.1", (), ("*",)), host="localhost", origin="https://any.example") == ""
