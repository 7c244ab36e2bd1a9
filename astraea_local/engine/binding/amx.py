"""AMX, the matrix unit of Intel's server CPUs, in builds of llama.cpp that end the process with it.

`ggml_backend_amx_mul_mat` fills in a tile configuration of 64 bytes. For GCC before 11.5, 12.4 and 13.3
`_tile_loadconfig` reads 8 of them, so it leaves the others unwritten, and the CPU refuses them (GCC bug
114098, llama.cpp issue 20824). Debian 12 and Ubuntu 22.04 have such compilers.
"""

import functools
import os
import re
from pathlib import Path

import llama_cpp as lib

_COMPILER = re.compile(rb"GCC: \([^)]*\) (\d+)\.(\d+)")
# Major version: the first minor version that is right.
_REPAIRED = {11: 5, 12: 4, 13: 3}


def miscompiled(library: bytes) -> bool:
    """Whether the bytes of a shared library name a GCC that makes such code."""
    versions = [(int(major), int(minor)) for major, minor in _COMPILER.findall(library)]
    return any(major < 11 or minor < _REPAIRED.get(major, 0) for major, minor in versions)


@functools.cache
def must_be_off() -> bool:
    """Whether the installed llama.cpp would use AMX here, and die of it."""
    if b"AMX_INT8 = 1" not in lib.llama_print_system_info():
        return False
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(lib.__file__).parent / "lib")
    return any(miscompiled(path.read_bytes()) for path in folder.glob("libggml-cpu*.so"))
