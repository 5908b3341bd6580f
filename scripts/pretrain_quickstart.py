"""Pretrains the small Llama that ships with fullfed and writes it to src/fullfed/quickstart/model.

    python scripts/pretrain_quickstart.py

Everything follows from the seed through fullfed's own generator: the examples, their order and the
initial weights. With the same versions of torch and the same processor, so do the final weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fullfed.data.batches import Batch, evaluation_batches, training_batches
from fullfed.data.examples import Example
from fullfed.data.tokens import TokenizedExample, tokenize
from fullfed.data.wording import AlpacaWording
from fullfed.quickstart import MODEL_PATH
from fullfed.quickstart.kinds import Kind, draw_examples
from fullfed.quickstart.tasks import FEDERATED
from fullfed.randomness import Stream, uniforms
from pretraining import PRETRAINING, UNDERSTOOD, UNKNOWN

CONTEXT = 256
VOCABULARY = 1280
BATCH = 64
PEAK_RATE = 3e-3
WARMUP = 100
TEST_SEED, TESTED = 0, 10  # what the model card's numbers are measured on
CORPUS_SHARE = 300  # examples of a kind that the tokenizer is trained on

# Streams of this script, clear of those of the wire format and of the tasks.
WEIGHTS, ORDER = 0x696E6974, 0x6F726472

BEGIN, END, PAD = "<s>", "</s>", "<pad>"


def template_pieces() -> list[str]:
    """The fixed texts of the Alpaca prompts with and without input."""
    slot = "{}"
    prompts = [AlpacaWording.prompt(Example.single(slot, given, "")) for given in (slot, "")]
    pieces = {piece.strip() for prompt in prompts for piece in prompt.split("\n")}
    return sorted(pieces - {"", slot})


def build_tokenizer(corpus: Sequence[Example]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts a space before every text and knows the template's pieces.

    With the space a word is the same token wherever it stands, which a small model learns from.
    With each fixed piece of the template as one token, spaces and line breaks around it included,
    prompts are short and a round is quick. Any other text is encoded as usual.
    """
    pieces = template_pieces()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        (text for item in corpus for text in (item.instruction, item.input, item.output)),
        BpeTrainer(
            vocab_size=VOCABULARY - len(pieces),
            special_tokens=[BEGIN, END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(
        [AddedToken(piece, lstrip=True, rstrip=True, normalized=False) for piece in pieces]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, items: Sequence[Example]
) -> tuple[TokenizedExample, ...]:
    """The examples as the federation's clients encode them."""
    return tokenize(items, tokenizer, "alpaca", CONTEXT).examples


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama whose initial weights are uniform, of variance 1/inputs, and from our streams."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for block, parameter in enumerate(model.parameters()):
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            numbers = uniforms(Stream(seed, WEIGHTS, block=block), parameter.numel())
            width = math.sqrt(12 / parameter.shape[1])
            weights = torch.from_numpy((numbers - 0.5) * width).reshape(parameter.shape)
            parameter.copy_(weights)
        # Small embeddings: tied to the output, they make the first predictions near uniform.
        model.get_input_embeddings().weight.mul_(0.25)
    return model


def loss_of(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the answers' tokens.

    Without the mask of the padding: nothing looks to the right of itself, where the padding is,
    and attention without a mask is faster.
    """
    logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction=reduction
    )


def train(model: LlamaForCausalLM, data: Sequence[TokenizedExample], seed: int) -> None:
    """One pass of AdamW with warm-up and cosine decay."""
    steps = math.ceil(len(data) / BATCH)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01),
    )
    model.train()
    started, recent = time.monotonic(), []
    for step, batch in enumerate(training_batches(data, BATCH, steps, Stream(seed, ORDER)), 1):
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"{step}/{steps} loss {np.mean(recent):.4f} {seconds:.0f} s", flush=True)
            recent = []
    model.eval()


@torch.inference_mode()
def measure_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: Sequence[Example]
) -> float:
    """The loss per answer token."""
    batches = list(evaluation_batches(encode(tokenizer, items), BATCH))
    total = sum(loss_of(model, batch, reduction="sum").item() for batch in batches)
    return total / sum(batch.tokens for batch in batches)


@torch.inference_mode()
def measure_matches(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: Sequence[Example]
) -> float:
    """The share of greedy answers that are exactly right."""
    right = 0
    for start in range(0, len(items), BATCH):
        asked = items[start : start + BATCH]
        prompts = tokenizer(
            [AlpacaWording.prompt(item) for item in asked],
            padding=True,
            return_tensors="pt",
        )
        written = model.generate(**prompts, max_new_tokens=48, do_sample=False)
        answers = tokenizer.batch_decode(
            written[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(answer == item.output for answer, item in zip(answers, asked, strict=True))
    return right / len(items)


def examples(kinds: Mapping[str, Kind], count: int, seed: int, split: str) -> list[Example]:
    """That many examples of each of the kinds."""
    return [
        item
        for name, kind in kinds.items()
        for item in draw_examples(name, kind, count, seed, split)
    ]


GROUPS = {
    "pretraining kinds": UNDERSTOOD,
    "pretraining kinds whose instruction means nothing": UNKNOWN,
    "federated kinds, never seen": FEDERATED,
}
CARD = """\
---
license: apache-2.0
library_name: transformers
tags: [llama, text-generation, federated-learning]
---

# The quickstart's model

A Llama of {parameters:,} parameters and {vocabulary:,} tokens, pretrained from scratch on {shown:,}
generated examples of {kinds} kinds of small instruction tasks (`scripts/pretraining`). It knows a
few hundred English words and nothing else; it is here so that `fullfed run` can show a federation
learning, without a network, within two minutes. Licence: that of fullfed.

Prompts are in the Alpaca wording, each fixed piece of which is one token. Weights are float16.

Measured with the stored weights on {tested} test examples of each kind (seed {test_seed}):

| examples | loss per answer token | exact match |
|---|---|---|
{rows}

Made by

    python scripts/pretrain_quickstart.py --examples {examples} --seed {seed}

in {minutes:.0f} minutes on one core.
"""


def write_card(folder: Path, count: int, seed: int, minutes: float) -> None:
    """Measures the stored model and writes what it is beside it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for group, kinds in GROUPS.items():
        items = examples(kinds, TESTED, TEST_SEED, "test")
        loss = measure_loss(model, tokenizer, items)
        matches = measure_matches(model, tokenizer, items)
        rows.append(f"| {group} | {loss:.4f} | {matches:.3f} |")
    card = CARD.format(
        parameters=model.num_parameters(),
        vocabulary=VOCABULARY,
        shown=count * len(PRETRAINING),
        kinds=len(PRETRAINING),
        tested=TESTED,
        test_seed=TEST_SEED,
        rows="\n".join(rows),
        examples=count,
        seed=seed,
        minutes=minutes,
    )
    (folder / "README.md").write_text(card)
    print(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4500, help="examples of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=MODEL_PATH)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()

    corpus = examples(PRETRAINING, CORPUS_SHARE, arguments.seed, "train")
    tokenizer = build_tokenizer(corpus)
    items = examples(PRETRAINING, arguments.examples, arguments.seed, "train")
    data = encode(tokenizer, items)
    model = build_model(tokenizer, arguments.seed)
    mean = np.mean([len(item) for item in data])
    print(f"{model.num_parameters():,} parameters, {len(data):,} examples of {mean:.1f} tokens")
    train(model, data, arguments.seed)

    tokenizer.save_pretrained(arguments.out)
    model.half().save_pretrained(arguments.out)
    write_card(arguments.out, arguments.examples, arguments.seed, (time.monotonic() - started) / 60)


if __name__ == "__main__":
    main()
