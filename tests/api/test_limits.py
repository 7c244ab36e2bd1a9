"""Bodies and schemas that are larger than anything anybody needs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from astraea_local.api.errors import ApiError
from astraea_local.api.limits import MAX_DEPTH, Bodies, check_schema, check_shape
from astraea_local.api.tenants import Tenants


def _refusal(body: bytes) -> str:
    with pytest.raises(ApiError) as refused:
        check_shape(body)
    return refused.value.message


def test_deep_nesting_is_refused_wherever_it_stands() -> None:
    assert "deep" in _refusal(b"[" * (MAX_DEPTH + 1))
    assert "deep" in _refusal(b'{"a":' * (MAX_DEPTH + 1))
    check_shape(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


def test_very_many_values_are_refused() -> None:
    assert "values" in _refusal(b"[" + b"[]," * 600_000 + b"1]")


@given(text=st.text(alphabet='[{"\\,:}] é', max_size=50))
def test_brackets_inside_of_texts_do_not_count(text: str) -> None:
    check_shape(json.dumps({"content": text * 100}).encode())


@given(body=st.binary(max_size=200))
def test_what_is_no_json_is_left_to_the_parser(body: bytes) -> None:
    check_shape(body)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": list(range(30_000))}, "values"),
        ({"description": "x" * 300_000}, "bytes"),
        (json.loads('{"items":' * 70 + "{}" + "}" * 70), "levels"),
    ],
)
def test_a_schema_beyond_reason_is_refused(schema: object, words: str) -> None:
    with pytest.raises(ApiError, match=f"json_schema: the schema has more than .* {words}"):
        check_schema(schema, "json_schema")


def test_a_schema_that_people_write_passes() -> None:
    check_schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}}, "x")


async def _chunk(size: int) -> Message:
    return {"type": "http.request", "body": b"x" * size, "more_body": True}


async def test_many_bodies_at_once_are_held_within_bounds() -> None:
    """Sixty-four MiB at most for small limits; what was released makes room."""
    bodies = Bodies(limit=16 << 20, timeout_s=5)

    async def whole() -> Message:
        return {"type": "http.request", "body": b" " * (16 << 20), "more_body": False}

    held = [await bodies.read("", whole) for _ in range(4)]
    with pytest.raises(ApiError) as refused:
        await bodies.read("", whole)
    assert (refused.value.status, refused.value.code) == (503, "bodies_full")
    assert held[0] is not None
    bodies.release(held[0])
    assert await bodies.read("", whole) is not None


async def test_a_refused_body_takes_no_room() -> None:
    bodies = Bodies(limit=1 << 20, timeout_s=5)
    for _ in range(100):
        with pytest.raises(ApiError, match="max_body_mib"):
            await bodies.read("", lambda: _chunk(1 << 19))
    assert await bodies.read("", lambda: _disconnect()) is None


async def _disconnect() -> Message:
    return {"type": "http.disconnect"}


def test_one_key_cannot_take_the_place_of_all() -> None:
    tenants = Tenants(most=2)
    tenants.take("ann", 2)
    with pytest.raises(ApiError, match=r"server\.max_queue_per_key is 2") as refused:
        tenants.take("ann", 1)
    assert (refused.value.status, refused.value.code) == (429, "key_queue_full")
    tenants.take("bob", 2)
    tenants.release("ann", 2)
    tenants.take("ann", 1)


def test_more_choices_than_a_key_can_ever_have_is_no_matter_of_time() -> None:
    with pytest.raises(ApiError) as refused:
        Tenants(most=2).take("ann", 3)
    assert refused.value.status == 400
    Tenants(most=2).take("", 3)
