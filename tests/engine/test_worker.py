"""The engine's process on its own: what it does when nobody is there any more."""

import multiprocessing
import pickle
from pathlib import Path

from astraea_local.engine import worker
from astraea_local.engine.messages import Ready
from astraea_local.engine.worker import EngineSpec
from astraea_local.profile import Profile, override


def test_a_front_that_goes_as_soon_as_the_engine_is_ready(demo_path: Path) -> None:
    """The vocabulary is being read for grammars at that moment, and must not be closed before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    changes = {"context.size": 512, "context.slots": 1, "model.threads": 1, "retention.disk_mib": 0}
    spec = EngineSpec(override(Profile(), changes), demo_path)
    process = context.Process(target=worker.main, args=(spec, theirs))
    process.start()
    theirs.close()
    while not any(isinstance(message, Ready) for message in pickle.loads(ours.recv_bytes())):
        pass
    ours.close()
    process.join(60)
    assert process.exitcode == 0
