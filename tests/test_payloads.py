"""Payloads: the same bytes wherever they are, and large ones in files that go by themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed import payloads
from fullfed.errors import UserError
from fullfed.payloads import joined, view

LONG = 10  # bytes; here longer ones are in files


@pytest.fixture(autouse=True, scope="module")
def _long() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "LARGE", LONG)
        yield


@given(st.lists(st.binary(max_size=8), max_size=5))
def test_parts_are_joined_and_only_long_ones_are_in_a_file(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    payload = joined(iter(parts), len(whole))
    assert payload == whole
    assert isinstance(payload, memoryview) == (len(whole) > LONG)
    assert payload[2:5] == whole[2:5]


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_view_is_a_part_of_a_file_and_leaves_it_where_it_was(
    content: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, len(content) - start))
    with tempfile.SpooledTemporaryFile(30) as file:
        file.write(content)
        part = view(file, start, length)
        assert file.tell() == len(content)
        file.write(b"more")
        assert part == content[start : start + length]
    assert part == content[start : start + length], "the file was closed, which the part is not"


def opened() -> set[Path]:
    """Files that this process has open."""
    return set(Path("/proc/self/fd").iterdir())


def test_the_file_goes_with_the_last_view_of_it() -> None:
    before = opened()
    payload = joined([b"x" * 1000], 1000)
    part = payload[10:20]
    del payload
    assert part == b"x" * 10
    assert len(opened() - before) == 1
    del part
    assert opened() <= before


def test_a_full_disk_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("r+b")  # noqa: SIM115
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
    with pytest.raises(UserError, match=r"No space left on device.*TMPDIR"):
        joined([b"x" * 100_000], 100_000)
