import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.api.shell import program_of


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("pytest -q tests", "pytest"),
        ("cd /repo && git status", "git"),
        ("cd /repo; git status", "git"),
        ("cd /repo\ngit status", "git"),
        ("cd /a/b # where it is\nmake", "make"),
        ("(cd sub && make -j4)", "make"),
        ("FOO=1 BAR='a b' python x.py", "python"),
        ("/usr/bin/env -u HOME FOO=1 node x.js", "node"),
        ("sudo -u bob timeout -k 5 60s make", "make"),
        ("sudo timeout make", "make"),
        ("nice -n 19 ionice -c 3 cargo build", "cargo"),
        ("set -euo pipefail; source .venv/bin/activate && pytest -x | tail -5", "pytest"),
        ("export PATH=$PATH:/x && go test ./...", "go"),
        ("bash -lc 'cd /repo && cargo test --all'", "cargo"),
        ("bash -c \"sh -c 'npm test'\"", "npm"),
        ("bash ./build.sh", "build.sh"),
        ("if [ -f Makefile ]; then make; fi", "make"),
        ("while true; do curl localhost; done", "curl"),
        ("time ./run", "run"),
        ("python -m pytest -q", "pytest"),
        ("python3.12 -m build", "build"),
        ("python - <<'EOF'\nprint(1)\nEOF", "python"),
        ("uv run --with rich pytest", "pytest"),
        ("poetry run mypy .", "mypy"),
        ("uv sync", "uv"),
        ("npx -p typescript tsc", "tsc"),
        ("find . -name '*.py' | xargs -n 1 wc -l", "find"),
        ("echo hello > out.txt && make", "make"),
        ("echo hello", "echo"),
        ("cat > notes.txt <<< text", "cat"),
        ("'C:\\tools\\rg.exe' needle", "rg"),
        ("powershell -Command 'git log'", "git"),
        ("echo 'unfinished", "echo"),
        ("", ""),
        ("   ", ""),
        ("FOO=1", ""),
        (["bash", "-lc", "cargo test --all"], "cargo"),
        (["git", "commit", "-m", "a b"], "git"),
        (["ls -la"], "ls"),
        (["/usr/bin/env", "FOO=1", "pytest"], "pytest"),
        ([], ""),
        ([5, None], ""),
        (None, ""),
        (7, ""),
    ],
)
def test_the_program_behind_its_surroundings(command: object, program: str) -> None:
    assert program_of(command) == program


def test_shells_in_shells_come_to_an_end() -> None:
    command = "make"
    for _ in range(6):
        command = f"bash -c {shlex.quote(command)}"
    assert program_of(command) in ("", "make")


@given(st.text() | st.lists(st.text()))
def test_nothing_that_is_typed_fails(command: object) -> None:
    assert isinstance(program_of(command), str)
