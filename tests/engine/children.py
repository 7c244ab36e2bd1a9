"""Children for the supervisor's tests: the real engine, with something going wrong in it."""

import os
from multiprocessing.connection import Connection

from astraea_local.engine import loop, worker
from astraea_local.engine.core import EngineCore
from astraea_local.engine.messages import Ready, SimulatePressure, Stop, Submit
from astraea_local.engine.pipe import Pipe
from astraea_local.engine.worker import EngineSpec

FLAG = "ASTRAEA_TEST_FLAG"


def asserts_once(spec: EngineSpec, connection: Connection) -> None:
    """The first child runs into a real assert of llama.cpp as soon as it is asked something."""
    if not os.path.exists(os.environ[FLAG]):  # noqa: PTH110 - runs before anything is imported for it
        original = EngineCore.submit

        def submit(core: EngineCore, request: Submit) -> None:
            with open(os.environ[FLAG], "w"):  # noqa: PTH123
                pass
            original(core, request)
            core.step()
            # Partial copies between streams are what llama.cpp forbids by an assert.
            assert core.context is not None
            core.context.seq_cp(0, 1, 0, 1)

        EngineCore.submit = submit  # type: ignore[method-assign, assignment]
    worker.main(spec, connection)


def always_asserts(spec: EngineSpec, connection: Connection) -> None:
    """Every child dies of every request."""
    original = EngineCore.submit

    def submit(core: EngineCore, request: Submit) -> None:
        original(core, request)
        os.abort()

    EngineCore.submit = submit  # type: ignore[method-assign, assignment]
    worker.main(spec, connection)


def never_starts(spec: EngineSpec, connection: Connection) -> None:
    """Dies before it says anything."""
    del spec, connection
    os._exit(3)


def notes_pressure(spec: EngineSpec, connection: Connection) -> None:
    """Writes a line for each simulated reading it is told, then says that it serves."""

    def serve(
        core: object,
        elastic: object,
        embedder: object,
        watch: object,
        experience: object,
        pipe: Pipe,
        *,
        calibrated: bool,
    ) -> None:
        del core, elastic, embedder, watch, experience, calibrated
        pipe.send([Ready("m", "full", "", "per_slot", 1, 512, 512, os.getpid())])
        while True:
            for message in pipe.receive(1.0):
                if isinstance(message, SimulatePressure):
                    with open(os.environ[FLAG], "a") as file:  # noqa: PTH123
                        file.write(f"{os.getpid()} {message.reading}\n")
                if isinstance(message, Stop):
                    return

    loop.run = serve
    worker.main(spec, connection)
