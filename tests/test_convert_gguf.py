"""scripts/convert_gguf.py says what it cannot do before it loads or writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

import convert_gguf
from fullfed.errors import UserError


def test_what_it_cannot_read_or_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "some.gguf", tmp_path / "model"
    with pytest.raises(UserError, match=r"some\.gguf: there is no such file"):
        convert_gguf.convert(source, out)
    source.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="there is something here already"):
        convert_gguf.convert(source, tmp_path)
    monkeypatch.setattr(convert_gguf, "find_spec", lambda package: None)
    with pytest.raises(UserError, match="takes the package gguf; install it"):
        convert_gguf.convert(source, out)
    assert not out.exists()
