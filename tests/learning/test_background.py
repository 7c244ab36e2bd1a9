"""When and how training runs beside the server."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from astraea_local.learning.background import Ended, Trainer, is_due
from astraea_local.learning.evaluate import MIN_ROWS
from astraea_local.learning.store import load
from tests.learning.histories import after_output, alternating, history, write

IDLE, BUSY = 60.0, 1.0
APART = 600.0


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    """One whose history does not exist."""
    made = Trainer(tmp_path / "history.sqlite3", tmp_path / "models", "model")
    yield made
    made.close()


def runs(trainer: Trainer) -> bool:
    """Asked anew each time, which a property is not for the type checker."""
    return trainer.is_running


def ended(trainer: Trainer, now: float = 1.0) -> Ended:
    """Waits for the training under way."""
    deadline = time.monotonic() + 120
    while (found := trainer.tick(now, 0, BUSY)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not runs(trainer)
    return found


@pytest.mark.parametrize(
    ("records", "trained", "idle_s", "since_s", "due"),
    [
        (MIN_ROWS, 0, IDLE, None, True),
        (MIN_ROWS - 1, 0, IDLE, None, False),
        (10_000, 0, BUSY, None, False),
        (2 * MIN_ROWS, MIN_ROWS, IDLE, APART, True),
        (2 * MIN_ROWS - 1, MIN_ROWS, IDLE, APART, False),
        (2 * MIN_ROWS, MIN_ROWS, IDLE, APART - 1, False),
        (2 * MIN_ROWS, MIN_ROWS, BUSY, APART, False),
        (12_000, 10_000, IDLE, APART, True),
        (11_999, 10_000, IDLE, 1e9, False),
        # The history was pruned.
        (5000, 10_000, IDLE, 1e9, False),
    ],
)
def test_training_is_due_when_there_is_something_new_and_nothing_to_do(
    records: int, trained: int, idle_s: float, since_s: float | None, due: bool
) -> None:
    assert is_due(records, trained, idle_s, since_s) is due


def test_it_trains_when_due_and_reports_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "history.sqlite3", history(60, 8, output=alternating, wait=after_output))
    trainer = Trainer(path, tmp_path / "models", "model")
    assert trainer.tick(0.0, 480, BUSY) is None
    assert not runs(trainer)
    begun = time.monotonic()
    assert trainer.tick(1.0, 480, IDLE) is None
    assert time.monotonic() - begun < 1.0
    assert runs(trainer)
    found = ended(trainer)
    assert (found.code, found.path) == (0, tmp_path / "models" / "learned-model.npz")
    assert "output, wait" in found.message
    pair = load(found.path)
    assert pair is not None
    assert pair.output is not None
    # Nothing new since.
    assert trainer.tick(1e6, 480, IDLE) is None
    assert not runs(trainer)
    trainer.close()


def test_a_failed_training_is_reported_and_not_repeated_at_once(trainer: Trainer) -> None:
    trainer.tick(0.0, 1000, IDLE)
    found = ended(trainer)
    assert found.code == 3
    assert "0 segments" in found.message
    assert not found.path.exists()
    trainer.tick(APART - 1, 2000, IDLE)
    assert not runs(trainer)
    trainer.tick(APART, 2000, IDLE)
    assert runs(trainer)


def test_a_training_that_talks_much_does_not_stall(trainer: Trainer) -> None:
    trainer._command = [sys.executable, "-c", "print('x' * 10_000_000); print('done')"]
    trainer.tick(0.0, 1000, IDLE)
    assert ended(trainer) == Ended(0, "done", trainer.path)


def test_close_kills_it(trainer: Trainer) -> None:
    trainer._command = [sys.executable, "-c", "import time; time.sleep(600)"]
    trainer.tick(0.0, 1000, IDLE)
    assert trainer._running is not None
    process = trainer._running.process
    assert os.getsid(process.pid) == process.pid
    trainer.close()
    trainer.close()
    assert process.returncode == -9
    assert not runs(trainer)


def test_a_training_that_was_killed_is_reported(trainer: Trainer) -> None:
    trainer._command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    trainer.tick(0.0, 1000, IDLE)
    assert ended(trainer) == Ended(-9, "", trainer.path)


def test_what_cannot_be_started_is_not_tried_at_once(trainer: Trainer) -> None:
    trainer._command = ["/nonexistent"]
    with pytest.raises(FileNotFoundError):
        trainer.tick(0.0, 1000, IDLE)
    assert trainer.tick(1.0, 1000, IDLE) is None
    assert not runs(trainer)


def test_a_model_may_have_any_name(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "history.sqlite3", tmp_path, "--help")
    trainer.tick(0.0, 1000, IDLE)
    assert ended(trainer).code == 3


def test_without_torch_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    trainer = Trainer(tmp_path / "history.sqlite3", tmp_path)
    assert trainer.tick(0.0, 10_000, IDLE) is None
    assert not runs(trainer)
