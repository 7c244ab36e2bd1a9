"""Tokens to text: complete characters only, stop strings never visible."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Model, Vocab
from astraea_local.engine.text import PieceTable, TextStream

# Few letters, of one to four bytes, so that stop strings occur and overlap.
_LETTERS = st.sampled_from("abé🙂")
_CUTS = st.lists(st.integers(0, 200), max_size=40)
_STOPS = st.lists(st.text(_LETTERS, min_size=1, max_size=4), min_size=1, max_size=3)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut for cut in cuts if cut < len(data)} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _streamed(pieces: list[bytes], stops: Sequence[str] = ()) -> tuple[str, str | None]:
    stream = TextStream(stops)
    text = "".join(stream.push(piece) for piece in pieces) + stream.finish()
    return text, stream.stopped_by


def _until_first_complete_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    found = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return text, None
    _end, at, stop = min(found)
    return text[:at], stop


@given(st.text(), _CUTS)
def test_any_text_in_any_pieces_comes_out_whole(text: str, cuts: list[int]) -> None:
    assert _streamed(_pieces(text.encode(), cuts)) == (text, None)


@given(st.binary(), _CUTS)
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, cuts: list[int]) -> None:
    assert _streamed(_pieces(data, cuts))[0] == data.decode("utf-8", "replace")


def test_a_character_cut_by_the_end_becomes_one_replacement_character() -> None:
    stream = TextStream()
    assert stream.push("a🙂".encode()[:-1]) == "a"
    assert stream.finish() == "\ufffd"


def test_nothing_is_held_back_without_need() -> None:
    stream = TextStream(["stop"])
    assert stream.push(b"no s") == "no "
    assert stream.push(b"t") == ""
    assert stream.push(b"ay") == "stay"
    assert stream.push(b"st") == ""
    assert stream.finish() == "st"


@given(st.text(_LETTERS, max_size=40), _STOPS, _CUTS)
def test_text_ends_at_the_first_complete_stop_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    """What comes out in all is the text before the stop: no beginning of it can have come out earlier."""
    assert _streamed(_pieces(text.encode(), cuts), stops) == _until_first_complete_stop(text, stops)


@given(st.text(_LETTERS, max_size=20), _STOPS)
def test_only_a_possible_beginning_of_a_stop_is_held(text: str, stops: list[str]) -> None:
    stream = TextStream(stops)
    out = ""
    for position, character in enumerate(text, start=1):
        out += stream.push(character.encode())
        if stream.stopped_by is not None:
            break
        held = text[len(out) : position]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_follows_a_stop() -> None:
    stream = TextStream(["\n\n"])
    assert stream.push(b"one\n\ntwo") == "one"
    assert stream.push(b"three") == ""
    assert stream.finish() == ""
    assert stream.stopped_by == "\n\n"


def test_of_two_stops_the_one_complete_first_counts() -> None:
    for pieces in ([b"abcdef"], [b"abc", b"def"], [b"a", b"b", b"c", b"d", b"e", b"f"]):
        assert _streamed(pieces, ["abcdef", "cd"]) == ("ab", "cd")
    assert _streamed([b"abcd"], ["cd", "bcd"]) == ("a", "bcd")


def test_empty_stops_are_ignored() -> None:
    assert _streamed([b"text"], ["", "x"]) == ("te", "x")
    assert _streamed([b"text"], [""]) == ("text", None)


@pytest.fixture(scope="module")
def vocab(tiny_path: Callable[[ShapeName], Path]) -> Iterator[Vocab]:
    with Model(tiny_path("tiny"), vocab_only=True) as model:
        yield model.vocab


def test_pieces_of_a_tokenized_text_give_it_back(vocab: Vocab) -> None:
    text = "def grüße(): return '🙂 × 4'\n"
    table = PieceTable(vocab)
    tokens = vocab.tokenize(text, add_special=False, parse_special=False).tolist()
    assert _streamed([table[token] for token in tokens]) == (text, None)
    assert _streamed([table[token] for token in tokens]) == (text, None)


def test_special_tokens_are_not_part_of_the_text(vocab: Vocab) -> None:
    assert PieceTable(vocab)[vocab.eos] == b""
