"""What a hostile or careless client can and cannot do, against the real server."""

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import trustme

from astraea_local.api.auth import ApiKeys
from astraea_local.api.server import ServeError, listen
from astraea_local.frame import JobRow, StateFrame
from astraea_local.profile import Profile, ProfileError, override
from tests.api.conftest import TinyPath, profile
from tests.conftest import Server, StartServer
from tests.test_cli import run

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
SECRET = "the-lighthouse-keeper-sleeps"
HI = [{"role": "user", "content": SECRET}]
ANN, BOB = "sk-ann-0123456789abcdef", "sk-bob-0123456789abcdef"
SHORT = {"messages": HI, "max_tokens": 2, "ignore_eos": True}
ENDLESS = {"messages": HI, "ignore_eos": True, "stream": True}

# For answers that never end.
ROOM = "[context]\nsize = 65536\nslots = 2\n[kv]\nlayout = 'per_slot'\n"


@pytest.fixture(scope="module")
def keyed(start_server: StartServer, tiny_path: TinyPath, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with two keys that logs all that it ever logs."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys"
    keys.write_text(f"ann: {ANN}\nbob: {BOB}\n")
    keys.chmod(0o600)
    settings = f'{ROOM}[server]\nmax_queue_per_key = 1\ncors_origins = ["https://app.example"]\n'
    given = ("--profile", profile(folder, tiny_path("tiny"), settings), "--api-key-file", str(keys))
    return start_server(*given, "--verbose", "--host", "0.0.0.0")


@dataclass
class Secure:
    """A server that speaks https and logs prompts."""

    url: str
    server: Server
    trusted: ssl.SSLContext

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", verify=self.trusted, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def secure(
    start_server: StartServer, tiny_path: TinyPath, tmp_path_factory: pytest.TempPathFactory
) -> Secure:
    folder = tmp_path_factory.mktemp("secure")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    given = ("--profile", profile(folder, tiny_path("tiny"), "[server]\nlog_prompts = true\n"))
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    server = start_server(*given, *tls, healthy=False)
    trusted = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    made = Secure(server.url.replace("http://", "https://"), server, trusted)
    server.wait_until(made.is_healthy, 120)
    return made


@pytest.fixture
def ann(keyed: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed.url, headers={"x-api-key": ANN}, timeout=60) as client:
        yield client


def _jobs(client: httpx.Client) -> list[JobRow]:
    return StateFrame.model_validate_json(client.get("/astraea/v1/state").content).jobs


def _is_idle(client: httpx.Client) -> bool:
    return all(job.state in ("waiting", "done") for job in _jobs(client))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", CHAT),
        ("GET", "/metrics"),
        ("GET", "/astraea/v1/state"),
        ("GET", "/astraea/v1/events"),
        ("POST", "/astraea/v1/policy"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/health/../v1/models"),
        ("GET", "/nonsense"),
    ],
)
def test_everything_but_health_needs_a_key(keyed: Server, method: str, path: str) -> None:
    for headers in ({}, {"x-api-key": "wrong-0123456789abcdef"}):
        answer = httpx.request(method, keyed.url + path, headers=headers, timeout=30)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{keyed.url}/health", timeout=30).status_code == 200


def test_the_official_client_with_and_without_the_key(keyed: Server) -> None:
    with openai.OpenAI(base_url=keyed.base_url, api_key=BOB, max_retries=0) as client:
        assert client.models.list().data
    with (
        openai.OpenAI(base_url=keyed.base_url, api_key="unused", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_the_anthropic_path_is_refused_in_its_own_words(keyed: Server) -> None:
    answer = httpx.post(f"{keyed.base_url}/messages", json={}, timeout=30)
    assert answer.status_code == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_jobs_of_different_keys_never_meet(ann: httpx.Client, keyed: Server) -> None:
    named = {"X-Session-Id": "same"}
    assert ann.post(CHAT, json=SHORT, headers=named).json()["astraea"]["job"] == "ann/same"
    answer = httpx.post(keyed.url + CHAT, json=SHORT, headers=named | {"api-key": BOB}, timeout=60)
    assert answer.json()["astraea"]["job"] == "bob/same"


def test_what_one_key_stored_is_unknown_to_the_others(ann: httpx.Client, keyed: Server) -> None:
    asked = {"input": SECRET, "max_output_tokens": 2, "ignore_eos": True}
    stored = ann.post("/v1/responses", json=asked).json()["id"]
    with httpx.Client(base_url=keyed.url, headers={"x-api-key": BOB}, timeout=60) as bob:
        assert bob.get(f"/v1/responses/{stored}").status_code == 404
        assert bob.delete(f"/v1/responses/{stored}").status_code == 404
        continued = asked | {"previous_response_id": stored}
        for path in ("/v1/responses", "/v1/responses/input_tokens"):
            refused = bob.post(path, json=continued)
            assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert ann.post("/v1/responses", json=asked | {"previous_response_id": stored}).status_code == 200
    assert ann.get(f"/v1/responses/{stored}").status_code == 200


def test_one_key_cannot_fill_the_queue_of_all(ann: httpx.Client, keyed: Server) -> None:
    with ann.stream("POST", CHAT, json=ENDLESS) as running:
        alive = running.iter_lines()
        next(line for line in alive if line.startswith("data:"))
        refused = ann.post(CHAT, json=SHORT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        other = httpx.post(keyed.url + CHAT, json=SHORT, headers={"api-key": BOB}, timeout=60)
        assert other.status_code == 200
    keyed.wait_until(lambda: ann.post(CHAT, json=SHORT).status_code == 200)


def test_pages_of_other_sites_are_kept_out(ann: httpx.Client) -> None:
    refused = ann.post(CHAT, json=SHORT, headers={"Origin": "https://evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_origin")
    assert "access-control-allow-origin" not in refused.headers
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in ann.options(CHAT, headers=preflight).headers


def test_a_listed_page_is_welcome_with_its_key(ann: httpx.Client, keyed: Server) -> None:
    origin = {"Origin": "https://app.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = httpx.options(keyed.url + CHAT, headers=origin | asked, timeout=30)
    assert preflight.status_code == 200
    for answer in (preflight, ann.post(CHAT, json=SHORT, headers=origin)):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert httpx.post(keyed.url + CHAT, json=SHORT, headers=origin, timeout=30).status_code == 401


def test_a_name_that_was_made_to_resolve_here_is_refused_on_the_network_too(ann: httpx.Client) -> None:
    refused = ann.get("/v1/models", headers={"Host": "evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "foreign_host")
    assert ann.get("/v1/models", headers={"Host": "192.168.7.7:8080"}).status_code == 200


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a\x00b", "x" * 5000])
def test_a_models_name_is_no_path(ann: httpx.Client, name: str) -> None:
    answer = ann.post(CHAT, json=SHORT | {"model": name})
    assert answer.status_code in (200, 400)
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["/v1/models/..%2f..%2fetc%2fpasswd", "/v1/../../etc/passwd", "//etc/passwd"]
)
def test_a_path_leads_to_no_file(ann: httpx.Client, path: str) -> None:
    assert ann.get(path).status_code == 404


@pytest.mark.parametrize(
    "extra",
    [
        {
            "chat_template_kwargs": {
                "x": "{{ ''.__class__.__mro__ }}",
                "messages": [],
                "bos_token": "{% for %}",
            }
        },
        {"messages": [{"role": "user", "content": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}]},
        {"chat_template_kwargs": {"raise_exception": 1, "range": 5, "__class__": "x", "self": {"a": 1}}},
    ],
)
def test_what_a_client_sends_is_data_for_the_template(ann: httpx.Client, extra: dict[str, Any]) -> None:
    answer = ann.post(CHAT, json=SHORT | extra)
    assert answer.status_code in (200, 400)
    assert "subprocess" not in answer.text


def test_too_many_headers_are_refused(ann: httpx.Client) -> None:
    refused = ann.get("/v1/models", headers={f"X-Many-{i}": "x" for i in range(150)})
    assert (refused.status_code, refused.json()["error"]["code"]) == (431, "too_many_headers")


def test_neither_keys_nor_prompts_are_ever_logged(ann: httpx.Client, keyed: Server) -> None:
    wrong = "sk-wrong-0123456789abcdef"
    ann.post(CHAT, json=SHORT)
    ann.post(CHAT, json=SHORT | {"grammar": f'root ::= "{SECRET}'})
    ann.post(CHAT, json=SHORT | {"temperature": SECRET})
    ann.post(CHAT, content=f'{{"messages": {SECRET}'.encode())
    httpx.get(f"{keyed.url}/v1/models?api_key={wrong}", headers={"x-api-key": wrong}, timeout=30)
    log = keyed.log.read_text()
    assert [word for word in (ANN, BOB, wrong, "sk-ann") if word in log] == []
    assert SECRET not in log


def test_prompts_are_logged_when_asked_for(secure: Secure) -> None:
    httpx.post(secure.url + CHAT, json=SHORT, verify=secure.trusted, timeout=60).raise_for_status()
    assert SECRET in secure.server.log.read_text()


def test_ps_uses_the_key_of_the_environment(keyed: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASTRAEA_API_KEY", raising=False)
    assert "no API key" in run("ps", keyed.url).stderr
    monkeypatch.setenv("ASTRAEA_API_KEY", f"ann:{ANN}")
    assert run("ps", keyed.url).returncode == 0


def test_a_request_that_takes_too_long_is_given_up(strict: Server) -> None:
    with httpx.Client(base_url=strict.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        whole = pool.submit(client.post, CHAT, json=ENDLESS | {"stream": False})
        with client.stream("POST", CHAT, json=ENDLESS) as running:
            last = [line for line in running.iter_lines() if line.startswith("data:")][-1]
        assert json.loads(last.removeprefix("data:"))["error"]["code"] == "request_timeout"
        answer = whole.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert time.monotonic() - began > 2.5
        strict.wait_until(lambda: _is_idle(client))


def _connect(server: Server) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", urlsplit(server.url).port))
    return sock


def _post(body: dict[str, Any], length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(content)}\r\n\r\n".encode() + content


def _rest(sock: socket.socket) -> bytes:
    """All that still comes, up to the end of the connection, however it ends."""
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionError:
        pass
    return received


def test_a_client_that_does_not_read_is_cut_off(strict: Server) -> None:
    wordy = ENDLESS | {"n": 8, "logprobs": True, "top_logprobs": 20}
    with closing(_connect(strict)) as sock, httpx.Client(base_url=strict.url, timeout=30) as client:
        sock.sendall(_post(wordy))
        strict.wait_until(lambda: not _is_idle(client))
        strict.wait_until(lambda: _is_idle(client))
        received = _rest(sock)
        assert b"data: " in received
        assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/comp", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_half_a_request_is_not_waited_for(strict: Server, sent: bytes) -> None:
    with closing(_connect(strict)) as sock:
        sock.sendall(sent)
        assert _rest(sock) == b""


def test_a_body_that_does_not_come_is_answered(strict: Server) -> None:
    with closing(_connect(strict)) as sock:
        sock.sendall(_post(SHORT, length=5000))
        received = _rest(sock)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in received


def test_a_trickle_of_headers_does_not_prolong_it(strict: Server) -> None:
    with closing(_connect(strict)) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")

        def is_cut() -> bool:
            try:
                sock.sendall(b"X-A: b\r\n")
            except ConnectionError:
                return True
            return False

        strict.wait_until(is_cut, 20)


def test_one_connection_too_many_is_told_so(strict: Server) -> None:
    many = [_connect(strict) for _ in range(45)]
    try:
        assert any(b"connections_full" in _rest(sock) for sock in many[-3:])
    finally:
        for sock in many:
            sock.close()
    strict.wait_until(strict.healthy)


def test_https(secure: Secure) -> None:
    answer = httpx.post(secure.url + CHAT, json=SHORT, verify=secure.trusted, timeout=60)
    assert answer.status_code == 200
    assert not secure.server.healthy()


def test_a_server_that_would_not_be_safe_does_not_start() -> None:
    options = ("--host", "0.0.0.0", "--api-key-file", "none")
    ended: subprocess.CompletedProcess[str] = run("serve", "--no-tui", "--port", "0", *options)
    assert ended.returncode == 2
    assert "none: cannot read API keys" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tls_cert": "c.pem"}, "server.tls_cert and server.tls_key belong together"),
        ({"tls_cert": "c.pem", "tls_key": "k.pem"}, "c.pem: no such file"),
        ({"host": "::"}, "can be reached by other machines: give an API key"),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(changes: dict[str, str], words: str) -> None:
    given = {f"server.{name}": value for name, value in changes.items()}
    with pytest.raises((ServeError, ProfileError), match=words):
        listen(override(Profile(), given).server, ApiKeys())
