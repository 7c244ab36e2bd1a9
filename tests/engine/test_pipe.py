"""The engine's end of the pipe."""

import multiprocessing
import pickle

import pytest

from astraea_local.engine.messages import EndJob, Loading, Stop
from astraea_local.engine.pipe import FrontGone, Pipe


def test_lists_arrive_whole_and_in_order() -> None:
    front, back = multiprocessing.Pipe()
    pipe = Pipe(back)
    pipe.send([])
    pipe.send([Loading(0.1), Loading(0.2)])
    assert pickle.loads(front.recv_bytes()) == [Loading(0.1), Loading(0.2)]
    assert not front.poll()
    for messages in ([EndJob("a"), EndJob("b")], [Stop()]):
        front.send_bytes(pickle.dumps(messages))
    assert pipe.receive(1.0) == [EndJob("a"), EndJob("b"), Stop()]
    assert pipe.receive(0) == []
    front.close()
    back.close()


def test_a_front_that_is_gone_is_noticed_on_both_ways() -> None:
    front, back = multiprocessing.Pipe()
    pipe = Pipe(back)
    front.close()
    with pytest.raises(FrontGone):
        pipe.receive(1.0)
    with pytest.raises(FrontGone):
        pipe.send([Loading(0.1)])
    back.close()
