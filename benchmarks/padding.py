"""How much of what training computes is padding.

    FULLFED_SHARED=... python benchmarks/padding.py --model models/smollm2-135m

The share of padded positions in the batches of whole visits, over twenty clients (or all, where
there are fewer) of each data set, as the recipes recipes/smollm2-*.toml divide them; beside it the
share that batches in random order would have.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from fullfed.data.batches import Batch, collate, training_batches
from fullfed.data.federated import divide, federate
from fullfed.data.tokens import TokenizedExample
from fullfed.randomness import Purpose, Stream, permutation
from fullfed.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[1]
SETS = ("gsm8k", "natural-instructions", "dolly", "code-alpaca")
CLIENTS = 20


def share(batches: Iterable[Batch]) -> tuple[int, int]:
    """Padded positions, and all."""
    padded = total = 0
    for batch in batches:
        total += batch.input_ids.numel()
        padded += batch.input_ids.numel() - int(batch.attention_mask.sum())
    return padded, total


def at_random(examples: Sequence[TokenizedExample], size: int, stream: Stream) -> list[Batch]:
    """One epoch of batches without regard to length."""
    order = permutation(stream, len(examples)).tolist()
    rows = [order[start : start + size] for start in range(0, len(order), size)]
    return [collate([examples[i] for i in row]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="whose tokenizer is taken")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    print("| data | samples a client | a batch | ten steps | an epoch | in random order |")
    print("|---|---|---|---|---|---|")
    for name in SETS:
        recipe = load_recipe(ROOT / f"recipes/smollm2-{name}.toml")
        assert recipe.data.max_length is not None
        divided = divide(recipe.data, 0)
        data = federate(*divided, recipe.data, tokenizer, recipe.data.max_length)
        clients = data.clients[:CLIENTS]
        samples = sorted(len(client.examples) for client in clients)
        for size in (4, 16):
            parts = []
            for kind in ("ten", "epoch", "random"):
                padded = total = 0
                for number, client in enumerate(clients):
                    own, stream = client.examples, Stream(0, Purpose.BATCHES, 0, number)
                    steps = 10 if kind == "ten" else -(-len(own) // size)
                    batches = (
                        at_random(own, size, stream)
                        if kind == "random"
                        else training_batches(own, size, steps, stream)
                    )
                    one, both = share(batches)
                    padded, total = padded + one, total + both
                parts.append(f"{padded / total:.1%}")
            print(f"| {name} | {samples[0]} to {samples[-1]} | {size} | {' | '.join(parts)} |")


if __name__ == "__main__":
    main()
