"""How the C library is set in processes that run llama.cpp; only glibc reads it, and only at their start."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "GLIBC_TUNABLES"
_TUNABLES = (
    # A saved state's tables lie a few bytes off a page's start. Some CPUs copy to there with `rep movsb` at
    # a quarter of the speed of vector instructions, which are used below this size.
    "glibc.cpu.x86_rep_movsb_threshold=0x10000000",
    # KV in huge pages: copies look up 512 times fewer of them.
    "glibc.malloc.hugetlb=1",
)


def tunables(given: str) -> str:
    """The variable's value for such a process; what the user has `given` wins."""
    return ":".join((*_TUNABLES, given) if given else _TUNABLES)


@contextmanager
def tuned() -> Iterator[None]:
    """Processes that are started inside get these settings."""
    given = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = tunables(given or "")
    try:
        yield
    finally:
        if given is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = given
