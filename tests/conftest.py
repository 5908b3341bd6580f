"""What every test may ask for: the folder of real data and models, and tiny ones made here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Tests compute little at a time: a second thread only waits, the more so on a busy machine. Nor do
# the processes need one that they start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("fullfed", deadline=None)
hypothesis.settings.load_profile("fullfed")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """See that a test leaves torch's threads as they were: sums of later ones would be others."""
    before = torch.get_num_threads()
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(before)
    assert left == before, f"the test left torch with {left} threads"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data/ and models/ that FULLFED_SHARED names."""
    folder = os.environ.get("FULLFED_SHARED")
    if folder:
        return Path(folder)
    if os.environ.get("CI") == "true":
        pytest.fail("FULLFED_SHARED is not set: in CI the tests on real data must run")
    pytest.skip("FULLFED_SHARED is not set")


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, then <s> = 256 and </s> = 257; no pad token, no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """Random weights for `byte_tokenizer`: two layers of width 16, context 64, in train mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,  # so that greedy answers are not one token over and over
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).train()
