"""The wire format does not move: every backend reproduces the committed values."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from sketch.make_golden import GOLDEN, compute


@pytest.fixture(params=[torch.float32, torch.float64])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """What torch makes tensors of when it is not told; no business of ours."""
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("backend", ["reference", None])
def test_golden_values(backend):
    expected = json.loads(GOLDEN.read_text())
    found = compute(backend)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == values, name


def test_the_file_is_what_is_written():
    assert GOLDEN.read_text() == json.dumps(compute("reference"), indent=1) + "\n"
