"""A replica: the base model and the updates so far, and a hash that says which."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Update
from fullfed.federation.replica import Replica, Rounding, content_hash


class AddOne:
    """A method whose every update adds a number to all weights."""

    cumulative = False

    def replicated(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        return dict(model.named_parameters())

    def moments(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        return {}

    def check_update(self, update: Update) -> None:
        pass

    def apply(self, model: LlamaForCausalLM, update: Update, moments: Mapping[str, Tensor]) -> None:
        for parameter in model.parameters():
            parameter.add_(update.values["step"])


@pytest.fixture
def replica(tiny_llama: LlamaForCausalLM) -> Replica:
    return Replica(tiny_llama, AddOne())  # type: ignore[arg-type]


def weights(replica: Replica) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in replica.state().items()}


def test_an_update_takes_the_replica_to_the_next_version(replica: Replica) -> None:
    before = weights(replica)
    replica.apply(Update(0, {"step": 1.0}))
    replica.apply(Update(1, {"step": 2.0}))
    assert replica.version == 2
    for name, tensor in replica.state().items():
        assert torch.equal(tensor, before[name] + 1.0 + 2.0)


@pytest.mark.parametrize("round", [0, 2, 9])
def test_an_update_for_another_version_is_refused(replica: Replica, round: int) -> None:
    replica.apply(Update(0, {"step": 1.0}))
    before = replica.content_hash()
    with pytest.raises(UserError, match=f"update {round} does not follow model version 1"):
        replica.apply(Update(round, {"step": 1.0}))
    assert (replica.version, replica.content_hash()) == (1, before)


@pytest.mark.parametrize(
    "error", [KeyError("coordinates"), RuntimeError("sizes differ"), MessageError("no step")]
)
def test_an_update_of_another_method_is_refused(
    tiny_llama: LlamaForCausalLM, error: Exception
) -> None:
    class Other(AddOne):
        def apply(
            self, model: LlamaForCausalLM, update: Update, moments: Mapping[str, Tensor]
        ) -> None:
            raise error

    with pytest.raises(UserError, match="update 0 does not fit the model and the method"):
        Replica(tiny_llama, Other()).apply(Update(0))  # type: ignore[arg-type]


class AddToBase(AddOne):
    """Every update says what is to be added to the base model."""

    cumulative = True


def test_a_cumulative_update_starts_from_the_base_and_replaces_earlier_ones(
    tiny_llama: LlamaForCausalLM,
) -> None:
    replica, late = (
        Replica(copy.deepcopy(tiny_llama), AddToBase())  # type: ignore[arg-type]
        for _ in range(2)
    )
    for round, step in enumerate((1.0, 2.0, 0.5)):
        replica.apply(Update(round, {"step": step}))
    late.apply(Update(2, {"step": 0.5}))
    assert late.version == replica.version == 3
    assert late.content_hash() == replica.content_hash()
    assert torch.equal(
        replica.state()["model.norm.weight"], tiny_llama.state_dict()["model.norm.weight"] + 0.5
    )
    with pytest.raises(UserError, match="update 1 does not follow model version 3"):
        late.apply(Update(1, {"step": 0.5}))


def test_the_hash_is_sha_256_of_names_dtypes_shapes_and_bytes() -> None:
    state = {
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "b": torch.tensor([1, 2], dtype=torch.uint8),
    }
    expected = hashlib.sha256()
    expected.update(b"a torch.float32 (2, 2)\n")
    expected.update(np.array([1, 2, 3, 4], dtype="<f4").tobytes())
    expected.update(b"b torch.uint8 (2,)\n" + bytes([1, 2]))
    assert content_hash(state) == expected.hexdigest()


def change_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("a", "c"): tensor for name, tensor in state.items()}


def change_bit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    flipped = state["a"].clone()
    flipped.view(torch.int32)[0, 0] ^= 1
    return {**state, "a": flipped}


def change_zero(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "b": -state["b"]}


def change_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "a": state["a"].reshape(4)}


def change_dtype(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "a": state["a"].view(torch.int32)}


@pytest.mark.parametrize(
    "change", [change_name, change_bit, change_zero, change_shape, change_dtype]
)
def test_the_least_change_changes_the_hash(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    state = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(2)}
    assert content_hash(change(state)) != content_hash(state)


def test_the_hash_does_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert content_hash({"a": tensor.t().contiguous().t()}) == content_hash({"a": tensor})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits_have_hashes_and_snapshots(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, dtype: torch.dtype
) -> None:
    replica = Replica(tiny_llama.to(dtype), AddOne())  # type: ignore[arg-type]
    before = replica.content_hash()
    replica.save_snapshot(tmp_path / "snapshot")
    replica.apply(Update(0, {"step": 1.0}))
    assert replica.content_hash() != before
    replica.load_snapshot(tmp_path / "snapshot")
    assert replica.content_hash() == before


def test_tied_parameters_are_held_once() -> None:
    config = LlamaForCausalLM.config_class(
        vocab_size=7,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    replica = Replica(LlamaForCausalLM(config), AddOne())  # type: ignore[arg-type]
    assert "lm_head.weight" not in replica.state()
    # Embeddings, attention q, k, v and o, three of the MLP, three norms; 4 bytes each.
    assert replica.nbytes == 4 * (7 * 4 + 4 * 4 * 4 + 3 * 4 * 4 + 3 * 4)


def test_a_snapshot_brings_weights_and_version_back(
    replica: Replica, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    other = Replica(copy.deepcopy(tiny_llama), AddOne())  # type: ignore[arg-type]
    replica.apply(Update(0, {"step": 0.5}))
    assert replica.snapshot_bytes == len(replica.snapshot())
    replica.save_snapshot(tmp_path / "snapshot")
    other.load_snapshot(tmp_path / "snapshot")
    assert other.version == 1
    assert other.content_hash() == replica.content_hash()
    other.apply(Update(1, {"step": 0.5}))
    assert other.version == 2
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]


def test_a_snapshot_with_any_part_changed_is_refused(replica: Replica, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    replica.apply(Update(0, {"step": 0.5}))
    replica.save_snapshot(path)
    data = path.read_bytes()
    before = (replica.version, replica.content_hash())
    generator = np.random.default_rng(0)
    for place in [*range(8, 400), *generator.integers(0, len(data), 300).tolist()]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            replica.load_snapshot(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
        assert (replica.version, replica.content_hash()) == before
    for end in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="this is not a snapshot"):
            replica.load_snapshot(path)


def test_a_snapshot_that_claims_another_version_is_refused(
    replica: Replica, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot"
    replica.save_snapshot(path)
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["fullfed"])
    forged = json.dumps({**about, "version": about["version"] + 1})
    path.write_bytes(safetensors.torch.save(weights(replica), metadata={"fullfed": forged}))
    with pytest.raises(UserError, match="content was changed"):
        replica.load_snapshot(path)


@pytest.mark.parametrize("about", ["{}", "[]", '{"version": 1}', '{"hash": ""}', "no json"])
def test_a_safetensors_file_that_is_no_snapshot_is_refused(
    replica: Replica, tmp_path: Path, about: str
) -> None:
    path = tmp_path / "snapshot"
    path.write_bytes(safetensors.torch.save(weights(replica), metadata={"fullfed": about}))
    with pytest.raises(UserError, match="this is not a snapshot; delete it and resume"):
        replica.load_snapshot(path)


def test_a_snapshot_of_another_model_is_refused(
    replica: Replica, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_llama).bfloat16()
    other = Replica(model, AddOne(), Rounding("stochastic"))  # type: ignore[arg-type]
    other.save_snapshot(tmp_path / "snapshot")
    with pytest.raises(UserError, match="of another model"):
        replica.load_snapshot(tmp_path / "snapshot")


def test_a_missing_snapshot_is_an_error_in_one_sentence(replica: Replica, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is not a snapshot"):
        replica.load_snapshot(tmp_path / "missing")
