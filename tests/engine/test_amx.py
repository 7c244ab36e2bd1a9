"""Builds of llama.cpp whose AMX code ends the process are known by their compiler."""

import pytest

from astraea_local.engine.binding import amx


@pytest.mark.parametrize(
    ("compiler", "wrong"),
    [
        ("GCC: (Debian 12.2.0-14+deb12u1) 12.2.0", True),
        ("GCC: (GNU) 11.2.1 20220127 (Red Hat 11.2.1-9)", True),
        ("GCC: (GNU) 11.5.0 20240719 (Red Hat 11.5.0-5)", False),
        ("GCC: (Ubuntu 10.5.0-1ubuntu1) 10.5.0", True),
        ("GCC: (Ubuntu 12.4.0-2ubuntu1) 12.4.0", False),
        ("GCC: (Ubuntu 13.2.0-23ubuntu4) 13.2.0", True),
        ("GCC: (Ubuntu 13.3.0-6ubuntu2) 13.3.0", False),
        ("GCC: (Debian 14.2.0-19) 14.2.0", False),
        ("GCC: (GNU) 15.1.1 20250425", False),
        ("Debian clang version 14.0.6", False),
        ("", False),
    ],
)
def test_the_compiler_tells(compiler: str, wrong: bool) -> None:
    library = b"\x7fELF\x02\x01\x01" + bytes(64) + compiler.encode() + b"\0.symtab\0"
    assert amx.miscompiled(library) is wrong
