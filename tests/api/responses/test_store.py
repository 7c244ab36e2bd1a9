"""What is remembered of responses, and for how long."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from astraea_local.api.responses.store import ResponseStore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(**bounds: Any) -> ResponseStore:
    usual: dict[str, Any] = {"entries": 10, "max_bytes": 1 << 20, "age_s": 100, "clock": Clock()}
    return ResponseStore(**usual | bounds)


def response(name: str, text: str = "answer") -> dict[str, Any]:
    return {"id": name, "output": [{"type": "message", "role": "assistant", "content": text}]}


def add(kept: ResponseStore, name: str, *, after: str | None = None, text: str = "answer") -> None:
    before = kept.get(after) if after else None
    earlier = before.items if before else ()
    kept.add(response(name, text), earlier, [{"role": "user", "content": f"asked for {name}"}])


def test_a_chain_has_all_that_was_said() -> None:
    kept = store()
    add(kept, "r1")
    add(kept, "r2", after="r1")
    found = kept.get("r2")
    assert found is not None
    assert [i["content"] for i in found.items] == ["asked for r1", "answer", "asked for r2", "answer"]


def test_a_chain_outlives_its_beginning() -> None:
    kept = store(entries=1)
    add(kept, "r1")
    add(kept, "r2", after="r1")
    assert kept.get("r1") is None
    found = kept.get("r2")
    assert found is not None
    assert len(found.items) == 4


def test_what_one_key_asked_for_is_unknown_to_the_others() -> None:
    kept = store()
    kept.add(response("r1"), [], [], "ann")
    for tenant in ("", "bob"):
        assert kept.get("r1", tenant) is None
        assert not kept.remove("r1", tenant)
    assert kept.get("r1", "ann") is not None
    assert kept.remove("r1", "ann")
    assert kept.bytes == 0


def test_the_least_recently_used_goes_first() -> None:
    kept = store(entries=2)
    add(kept, "r1")
    add(kept, "r2")
    kept.get("r1")
    add(kept, "r3")
    assert [kept.get(name) is not None for name in ("r1", "r2", "r3")] == [True, False, True]


def test_age_ends_it() -> None:
    clock = Clock()
    kept = store(age_s=10, clock=clock)
    add(kept, "r1")
    clock.now = 9
    add(kept, "r2")
    clock.now = 11
    assert kept.get("r1") is None
    assert kept.get("r2") is not None


def test_what_is_removed_is_gone_once() -> None:
    kept = store()
    add(kept, "r1")
    assert kept.remove("r1")
    assert not kept.remove("r1")
    assert kept.get("r1") is None
    assert kept.bytes == 0


def test_one_that_is_too_large_displaces_nothing() -> None:
    kept = store(max_bytes=1000)
    add(kept, "r1")
    add(kept, "large", text="x" * 2000)
    assert kept.get("large") is None
    assert kept.get("r1") is not None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400), st.booleans()), max_size=60))
def test_the_bounds_hold_whatever_comes(steps: list[tuple[int, int, bool]]) -> None:
    clock = Clock()
    kept = store(entries=5, max_bytes=3000, age_s=30, clock=clock)
    last: str | None = None
    for i, (seconds, size, remove) in enumerate(steps):
        clock.now += seconds
        add(kept, f"r{i}", after=last, text="x" * size)
        last = f"r{i}"
        if remove:
            kept.remove(f"r{i // 2}")
        assert len(kept) <= 5
        assert 0 <= kept.bytes <= 3000
    clock.now += 1000
    assert kept.get("r0") is None
    assert (len(kept), kept.bytes) == (0, 0)
