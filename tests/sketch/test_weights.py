"""Public weights: one number for each element, given in fewer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.sketch import NormalBasis, SignBasis, pieces
from sketch.models import copies, same_bits, tensors, weights
from sketch.oracle import f32, sign_project, sign_reconstruct


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "STAGED", 700)
    monkeypatch.setattr(pieces, "SERIAL", 300)


def spelled_out(model, chosen) -> list[torch.Tensor]:
    """A full-size float32 tensor of weights for each tensor."""
    full = []
    for tensor, weight in zip(model, chosen, strict=True):
        if isinstance(weight, tuple):
            full.append(weight[0][:, None] * weight[1][None, :])
        else:
            full.append(torch.as_tensor(weight, dtype=torch.float32).expand(tensor.shape))
    return full


def flat(model) -> np.ndarray:
    return torch.cat([tensor.float().reshape(-1) for tensor in model]).numpy()


@settings(max_examples=25, deadline=None)
@given(tensors(longest=12), st.data(), st.integers(1, 200))
def test_both_operations_are_the_specification(model, data, k):
    """x = fl(v fl(after - before)); w = fl(w + s fl(f y)) with f = fl(scale v)."""
    chosen = data.draw(weights(model).filter(lambda drawn: drawn is not None))
    numbers = flat(model)
    basis = SignBasis(seed=3, round=k, coordinates=min(k, numbers.size))
    before = [tensor * 0.75 for tensor in model]
    v = flat(spelled_out(model, chosen))
    y = basis.project(model, before=before, weights=chosen)
    assert np.array_equal(y.numpy(), sign_project(basis, v * (numbers - flat(before))))
    wide = [tensor.float() for tensor in model]
    basis.reconstruct_(wide, y, scale=0.3, inverse=chosen)
    assert np.array_equal(flat(wide), sign_reconstruct(basis, numbers, y.numpy(), f32(0.3) * v))
    basis.reconstruct_(model, y, scale=0.3, inverse=chosen)
    assert same_bits(model, [w.to(t.dtype) for w, t in zip(wide, model, strict=True)])


@settings(max_examples=15, deadline=None)
@given(tensors(longest=12), st.data())
def test_dense_bases_take_them_too(model, data):
    """A weighted projection is that of the weighted change; a number is a tensor of it."""
    chosen = data.draw(weights(model).filter(lambda drawn: drawn is not None))
    basis = NormalBasis(seed=1, round=1, blocks=(range(len(model)),), coordinates=(1,))
    full = spelled_out(model, chosen)
    scaled = [tensor.float() * v for tensor, v in zip(model, full, strict=True)]
    y = basis.project(model, weights=chosen)
    assert torch.equal(y, basis.project(scaled))
    results = [copies(model), copies(model)]
    basis.reconstruct_(results[0], y, scale=0.3, inverse=chosen)
    basis.reconstruct_(results[1], y, scale=0.3, inverse=full)
    assert same_bits(*results)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_form_a_weight_is_given_in_does_not_show(rounding):
    basis = SignBasis(seed=1, round=1, coordinates=90)
    delta = [torch.randn(60, 50, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    rows, columns = torch.full((60,), 0.3), torch.full((50,), 1.0)
    forms = [0.3, torch.tensor(0.3), torch.full((60, 50), 0.3), rows[:, None], (rows, columns)]
    ys, results = [], []
    for form in forms:
        ys.append(basis.project(delta, weights=[form, 2.0]))
        results.append([tensor.bfloat16() for tensor in delta])
        basis.reconstruct_(results[-1], ys[0], inverse=[form, 2.0], rounding=rounding)
    for y, result in zip(ys, results, strict=True):
        assert torch.equal(y, ys[0])
        assert same_bits(result, results[0])


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        (torch.ones(4), r"\(4,\) does not fit the tensor's \(3, 2\)"),
        (torch.ones(1, 3, 2), r"\(1, 3, 2\) does not fit"),
        ((torch.ones(2), torch.ones(3)), r"\(2,\) and \(3,\) does not fit"),
        ((torch.ones(3, 1), torch.ones(2)), "does not fit"),
        (torch.ones(2).double(), "torch.float64, not float32"),
        (torch.ones(2, device="meta"), "it is on meta"),
        (torch.tensor([1.0, float("nan")]), "not finite"),
        ((torch.tensor([1e30, 1, 1]), torch.tensor([1.0, 1e30])), "not finite"),
        (float("inf"), "not finite"),
        (1e39, "not finite"),
    ],
)
def test_weights_that_cannot_be_used_change_nothing(weight, fault):
    basis = SignBasis(seed=1, round=1, coordinates=4)
    model = [torch.ones(5), torch.ones(3, 2)]
    with pytest.raises(UserError, match=f"weight 1 cannot be used: .*{fault}"):
        basis.project(model, weights=[1.0, weight])
    with pytest.raises(UserError, match=f"weight 1 cannot be used: .*{fault}"):
        basis.reconstruct_(model, torch.ones(4), inverse=[1.0, weight])
    assert all((tensor == 1).all() for tensor in model)


def test_a_pair_is_for_a_matrix_and_a_weight_for_each_tensor():
    basis, pair = SignBasis(seed=1, round=1, coordinates=4), (torch.ones(5), torch.ones(5))
    with pytest.raises(UserError, match="does not fit"):
        basis.project([torch.ones(5)], weights=[pair])
    with pytest.raises(UserError, match="2 weights for 1 tensors"):
        basis.project([torch.ones(5)], weights=[1.0, 1.0])
    with pytest.raises(UserError, match=r"weight 0 .* not finite"):
        basis.reconstruct_([torch.ones(5)], torch.ones(4), scale=1e20, inverse=[1e20])
