"""A sealed object is what was written, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.files import read_sealed, seal, unseal, write_sealed

VALUE = {"loss": 0.1, "bytes": {"up": 3}, "names": ["ä", None, True], "seconds": 1e-9}
PLACE = Path("a/file.json")


def same_values(one: bytes, other: bytes) -> bool:
    try:
        return repr(json.loads(one.decode("ascii"))) == repr(json.loads(other))
    except ValueError:
        return False


def test_what_is_sealed_is_read_back(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", VALUE, "before")
    found = read_sealed(tmp_path / "a.json", "absent", "before")
    assert {k: v for k, v in found.items() if k != "checksum"} == VALUE
    assert len(found["checksum"]) == 64
    assert seal(found, "before") == found, "sealing again changes nothing"


def test_the_checksum_is_that_of_the_values_however_they_are_written() -> None:
    sealed = seal(VALUE)
    assert seal(dict(reversed(VALUE.items())))["checksum"] == sealed["checksum"]
    assert unseal(json.dumps(sealed, indent=7).encode(), PLACE)["checksum"] == sealed["checksum"]


def test_every_flipped_bit_is_found() -> None:
    whole = json.dumps(seal(VALUE, "before")).encode()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            if same_values(bytes(flipped), whole):  # another kind of space
                continue
            with pytest.raises(UserError, match=r"a/file\.json: this is not what the run wrote"):
                unseal(bytes(flipped), PLACE, "before")


@given(st.binary(max_size=40))
def test_whatever_is_read_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(UserError, match=r"a/file\.json: this is not what the run wrote"):
        unseal(data, PLACE)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '{"a": 1, "checksum": 3}',
        '{"a": NaN, "checksum": ""}',
        '{"a": 1e999, "checksum": ""}',
        "[" * 100_000,
        '["checksum"]',
        '"checksum"',
        "{}",
    ],
)
def test_what_was_never_sealed_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="this is not what the run wrote"):
        unseal(text.encode(), PLACE)


def test_a_key_that_stands_twice_is_refused() -> None:
    text = json.dumps(seal({"a": 1}))
    for other in (text.replace('{"a"', '{"a": 2, "a"'), text.replace('{"a"', '{"a": 1, "a"')):
        with pytest.raises(UserError, match="this is not what the run wrote"):
            unseal(other.encode(), PLACE)


def test_an_object_of_another_place_is_refused() -> None:
    data = json.dumps(seal(VALUE, "before")).encode()
    for follows in ("", "another"):
        with pytest.raises(UserError, match="this is not what the run wrote"):
            unseal(data, PLACE, follows)


def test_a_missing_file_is_told_as_the_caller_wants(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resume it first"):
        read_sealed(tmp_path / "a.json", "resume it first")
    with pytest.raises(UserError, match="cannot be read"):
        read_sealed(tmp_path, "absent")
