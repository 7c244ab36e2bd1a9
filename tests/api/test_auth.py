from pathlib import Path

import pytest
from starlette.datastructures import Headers

from astraea_local.api.auth import ApiKeys, KeyFault, gather, readable_by_others
from astraea_local.api.errors import ApiError

ANN, BOB = "sk-ann-0123456789abcdef", "sk-bob-0123456789abcdef"
KEYS = ApiKeys([("ann", ANN), ("bob", BOB)])


def _tenant(headers: dict[str, str], keys: ApiKeys = KEYS, path: str = "/v1/models") -> str:
    return keys.tenant(path, Headers(headers))


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_a_key_is_accepted_under_every_name_that_sdks_use(header: str) -> None:
    assert _tenant({header: BOB}) == "bob"
    assert _tenant({"Authorization": f"Bearer {ANN}"}) == "ann"
    assert _tenant({"Authorization": f"bearer  {ANN} "}) == "ann"


def test_a_placeholder_beside_the_key_does_not_hide_it() -> None:
    assert _tenant({"Authorization": "Basic abc", "x-api-key": ANN}) == "ann"


@pytest.mark.parametrize("sent", [ANN[:-1], ANN + "x", ANN.upper(), "ann", "\udcff", " "])
def test_a_wrong_key_is_refused_without_repeating_it(sent: str) -> None:
    with pytest.raises(ApiError) as refused:
        _tenant({"x-api-key": sent} if sent.isascii() else {"x-api-key": "\xff"})
    assert refused.value.status == 401
    assert "ann" not in refused.value.message


def test_no_key_says_how_to_send_one() -> None:
    with pytest.raises(ApiError, match="Authorization: Bearer") as refused:
        _tenant({"Authorization": "Bearer "})
    assert (refused.value.status, refused.value.code) == (401, "missing_api_key")


def test_health_needs_none_and_a_server_without_keys_asks_for_none() -> None:
    assert _tenant({}, path="/health") == ""
    assert _tenant({}, ApiKeys()) == ""


def test_keys_come_from_options_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\nann: {ANN}\n  bob:{BOB}  \n")
    keys = gather(["cy:sk-cy-0123456789abcdef"], str(file), "dan:sk-dan-0123456789abcdef")
    assert keys.tenants == ["cy", "dan", "ann", "bob"]
    assert _tenant({"x-api-key": BOB}, keys) == "bob"


def test_a_single_key_needs_no_name_and_several_get_one() -> None:
    assert gather([ANN], "", "").tenants == [""]
    assert gather([ANN], "", BOB).tenants == ["key-1", "key-2"]


def test_a_short_key_is_known_as_such() -> None:
    assert gather(["secret"], "", "").short
    assert not gather([ANN], "", "").short


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        ([":"], None, "--api-key: a key is printable"),
        (["ann:"], None, "--api-key: a key is printable"),
        (["a b"], None, "--api-key: a key is printable"),
        (["schlüssel"], None, "--api-key: a key is printable"),
        (["../x:key-0123"], None, "--api-key: a name has letters"),
        ([f"a:{ANN}", f"a:{BOB}"], None, "two API keys are named 'a'"),
        ([f"a:{ANN}", f"b:{ANN}"], None, "given twice"),
        ([], "# nothing\n", "holds no API key"),
        ([], "ann: one two\n", "keys:1: a key is printable"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_and_not_repeated(
    options: list[str], text: str | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KeyFault, match=words) as refused:
        gather(options, str(file) if text is not None else "", "")
    assert ANN not in str(refused.value)


def test_a_missing_file_of_keys_is_named() -> None:
    with pytest.raises(KeyFault, match="/nowhere/keys: cannot read API keys: No such file"):
        gather([], "/nowhere/keys", "")


def test_a_file_that_others_can_read_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("x")
    file.chmod(0o644)
    assert readable_by_others(str(file))
    file.chmod(0o600)
    assert not readable_by_others(str(file))
