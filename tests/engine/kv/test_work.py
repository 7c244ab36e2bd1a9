"""The order of operations on parts."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.engine.kv.work import Operation, Reading, Removing, WorkQueue, Writing
from tests.engine.kv.states import part


def _operation(kind: str, part_id: str) -> Operation:
    if kind == "write":
        return Writing(part_id, b"", memoryview(b""), 0, 0.0)
    return Reading(part_id, part(1)[1]) if kind == "read" else Removing(part_id)


@given(st.lists(st.tuples(st.sampled_from(["write", "read", "remove"]), st.sampled_from("abc")), max_size=30))
def test_two_threads_do_everything_and_each_part_in_order(asked: list[tuple[str, str]]) -> None:
    queue = WorkQueue()
    operations = [_operation(kind, name) for kind, name in asked]
    ended: list[Operation] = []
    at_work: set[str] = set()
    overlaps: list[str] = []

    def serve(*kinds: type[Operation]) -> None:
        while (operation := queue.take(*kinds)) is not None:
            if operation.part_id in at_work:
                overlaps.append(operation.part_id)
            at_work.add(operation.part_id)
            ended.append(operation)
            at_work.discard(operation.part_id)
            queue.done(operation)

    threads = [threading.Thread(target=serve, args=kinds) for kinds in ((Writing, Removing), (Reading,))]
    for thread in threads:
        thread.start()
    for operation in operations:
        assert queue.put(operation)
    queue.close()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert overlaps == []
    for name in "abc":
        assert [o for o in ended if o.part_id == name] == [o for o in operations if o.part_id == name]
    writers = [o for o in ended if not isinstance(o, Reading)]
    assert writers == [o for o in operations if not isinstance(o, Reading)]
    assert queue.unfinished() == []


def test_a_closed_queue_takes_nothing_in() -> None:
    queue = WorkQueue()
    waiting = _operation("remove", "a")
    queue.put(waiting)
    queue.close()
    assert not queue.put(_operation("remove", "b"))
    assert queue.unfinished() == [waiting]


def test_what_is_begun_is_not_taken_back() -> None:
    queue = WorkQueue()
    first, second = _operation("write", "a"), _operation("write", "b")
    queue.put(first)
    queue.put(second)
    assert queue.take(Writing) is first
    assert queue.clear() == [second]
    assert queue.unfinished() == [first]
    queue.done(first)
    with pytest.raises(ValueError):
        queue.done(second)
