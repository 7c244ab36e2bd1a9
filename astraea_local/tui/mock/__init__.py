"""A server that does not exist: seeded agents that arrive, queue, run, and wait for tools, for `top --mock`.

It follows no real scheduler. Its figures are plausible, nothing more, and the same seed gives the same.
"""

from astraea_local.tui.mock.control import MockControl as MockControl
from astraea_local.tui.mock.control import MockSource as MockSource
from astraea_local.tui.mock.world import MockWorld as MockWorld
