"""The C library's settings reach processes that are started, and nothing else."""

import os
import subprocess
import sys

import pytest

from astraea_local.engine.libc import VARIABLE, tunables, tuned

_SHOW = f"import os; print(os.environ['{VARIABLE}'])"


@pytest.mark.parametrize("given", [None, "glibc.malloc.hugetlb=0"])
def test_a_process_gets_them_and_what_the_user_set_comes_last(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glibc takes the last of several values."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    with tuned():
        shown = subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == tunables(given or "")
    assert shown.stdout.strip().endswith(given or "hugetlb=1")
    assert os.environ.get(VARIABLE) == given


def test_a_process_that_cannot_be_started_leaves_the_environment_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "mine")
    with pytest.raises(FileNotFoundError), tuned():
        subprocess.run(["/nowhere/at/all"], check=True)
    assert os.environ[VARIABLE] == "mine"
