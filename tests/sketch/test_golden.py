"""The wire format does not move: every backend reproduces the committed values."""

from __future__ import annotations

import json

import pytest

from sketch.make_golden import GOLDEN, compute


@pytest.mark.parametrize("backend", ["reference", None])
def test_golden_values(backend):
    expected = json.loads(GOLDEN.read_text())
    found = compute(backend)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == values, name
