"""The user's keys: what is right is used, what is wrong is named with its remedy."""

from pathlib import Path

import pytest

from astraea_local.tui.keys import KEYS, KeysError, binding, in_force, load, path, readable


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    return file


def test_without_a_file_nothing_is_changed(tmp_path: Path) -> None:
    found = load(tmp_path / "none.toml")
    assert (found.keys, found.theme) == ({}, None)


def test_keys_and_theme_are_read(tmp_path: Path) -> None:
    found = load(written(tmp_path, 'theme = "nord"\n[keys]\npark = "ctrl+k,K"\npin = "?"\nhelp = "f1"\n'))
    assert found.theme == "nord"
    assert in_force(found.keys)["park"] == "ctrl+k,K"
    assert in_force(found.keys)["drop"] == "d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[keys]\nprak = 'k'", r"keys\.prak: no such action: known are .*park"),
        ("[keys]\npark = 7", r"keys\.park: must be a key in quotes"),
        ("[keys]\npark = 'hyper+k'", r"'hyper\+k' is no key"),
        ("[keys]\npark = 'banana'", "'banana' is no key"),
        ("[keys]\npark = 'h'", "'h' is the key of"),
        ("[kyes]\n", "unknown field 'kyes': known here are theme and"),
        ("theme = 3", "theme: must be a name in quotes"),
        ("keys = 3", "keys: must be a table"),
        ("[keys", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(KeysError, match=words) as caught:
        load(written(tmp_path, text))
    assert "keys.toml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_may_be_exchanged(tmp_path: Path) -> None:
    found = load(written(tmp_path, "[keys]\npark = 'd'\ndrop = 'k'"))
    assert found.keys == {"park": "d", "drop": "k"}


def test_no_two_actions_share_a_key() -> None:
    keys = [key for each in KEYS.values() for key in each.keys.split(",")]
    assert len(keys) == len(set(keys))


def test_bindings_carry_their_names() -> None:
    assert {binding(name).id for name in KEYS} == set(KEYS)
    assert readable("question_mark,f1") == "?  f1"


def test_the_file_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert path() == tmp_path / "astraea-local" / "keys.toml"
