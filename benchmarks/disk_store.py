"""Speed of the disk tier: a state written and read by the store, against the same bytes without it.

In turns on the same disk; medians are printed. `plain` writes and reads the buffer in pieces of 2 MiB,
with buffers that begin with a page; neither waits for the device (no fsync). With `--cold` the pages are
dropped from the cache between write and read, where the system allows it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from astraea_local.engine.kv import arena
from astraea_local.engine.kv.disk import DiskStore, Read, Written
from astraea_local.engine.kv.files import Bytes, ModelIdentity, PartHeader

_EXAMPLE = """example:
  python benchmarks/disk_store.py --mb 64 --repeats 7 --json disk_store.json
"""
_ID = "0" * 32
_PIECE = 1 << 21
# A state of 4 MiB takes half a millisecond: looking seldom would be most of what is measured.
_LOOK_S = 0.00002


def plain(path: Path, data: Bytes, into: Bytes, *, cold: bool) -> tuple[float, float]:
    """Seconds of a write into a new file, and of reading it."""
    began = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    left = data.data
    while left:
        left = left[os.write(descriptor, left[:_PIECE]) :]
    os.close(descriptor)
    written = time.perf_counter() - began
    if cold:
        forget(path)
    began = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    left = into.data
    while left:
        left = left[os.readv(descriptor, [left[:_PIECE]]) :]
    os.close(descriptor)
    read = time.perf_counter() - began
    path.unlink()
    return written, read


def stored(store: DiskStore, data: Bytes, into: Bytes, tokens: int, *, cold: bool) -> tuple[float, float]:
    """The same by the store, from the call until `poll` reports it."""
    header = PartHeader(_ID, "", 0, np.arange(tokens, dtype=np.int32), len(data), "job", time.time())
    began = time.perf_counter()
    store.write(header, data)
    wait(store, Written)
    written = time.perf_counter() - began
    if cold:
        forget(store.folder / f"{_ID}.kv")
    began = time.perf_counter()
    store.read(_ID, into)
    wait(store, Read)
    read = time.perf_counter() - began
    store.remove(_ID)
    # Its pages are freed meanwhile, which must not fall into the other way's time.
    while (store.folder / f"{_ID}.kv").exists():
        time.sleep(0.0002)
    return written, read


def wait(store: DiskStore, wanted: type[Written | Read]) -> None:
    """Returns when the store reports success; ends the program when it reports failure."""
    while not (events := store.poll()):
        time.sleep(_LOOK_S)
    if not isinstance(events[0], wanted):
        raise SystemExit(f"the store failed: {events[0]}")


def forget(path: Path) -> None:
    """Drops a file's pages from the cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(folder: Path, size: int, repeats: int, *, cold: bool) -> dict[str, tuple[float, float]]:
    """Median seconds of write and read by `plain` and `store`; the first round is not counted."""
    data, into = arena.plain(size), arena.plain(size)
    into[:] = 1  # mapped
    data[:] = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "store": []}
    identity = ModelIdentity("benchmark", "f16", "f16", False, "rows", "any", "0")
    store = DiskStore(folder, identity, 4 * size + (1 << 20))
    store.open()
    try:
        for number in range(repeats + 1):
            found = {
                "plain": plain(folder / "plain", data, into, cold=cold),
                "store": stored(store, data, into, max(1, size >> 13), cold=cold),
            }
            for way, pair in found.items():
                times[way] += [pair] if number else []
    finally:
        store.close(timeout_s=60)
    return {
        way: (statistics.median(w for w, _ in pairs), statistics.median(r for _, r in pairs))
        for way, pairs in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", nargs="+", type=int, default=[4, 64], help="sizes of the state, MiB")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--cold", action="store_true", help="read from the device, not from the cache")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if min(*arguments.mb, arguments.repeats) < 1:
        parser.error("--mb and --repeats must be at least 1")
    if arguments.cold and not hasattr(os, "posix_fadvise"):
        parser.error("--cold: this system cannot drop pages")
    figures = []
    pair = f"{'plain':>10} {'store':>10}"
    print(f"{'':>8} {'write, MB/s':>21} {'read, MB/s':>21} {'both, ms':>17} {'store':>9}")
    print(f"{'MiB':>8} {pair} {pair} {'plain':>8} {'store':>8} {'/ plain':>9}")
    for mb in arguments.mb:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = measure(Path(folder), mb << 20, arguments.repeats, cold=arguments.cold)
        megabytes = (mb << 20) / 1e6
        rates = " ".join(f"{megabytes / found[way][i]:>10.0f}" for i in (0, 1) for way in ("plain", "store"))
        both = {way: 1000 * sum(pair) for way, pair in found.items()}
        ratio = both["plain"] / both["store"]
        print(f"{mb:>8} {rates} {both['plain']:>8.1f} {both['store']:>8.1f} {ratio:>8.2f}x")
        figures.append({"mib": mb, "cold": arguments.cold, "ratio": ratio, "seconds": found})
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
