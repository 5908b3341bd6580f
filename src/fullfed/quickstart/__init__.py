"""What `fullfed quickstart` learns on: a small pretrained model, its tasks, and its recipe."""

from __future__ import annotations

from pathlib import Path

from fullfed.config import Recipe, parse_recipe

MODEL_PATH = Path(__file__).parent / "model"
"""The folder of the shipped model and tokenizer."""


def quickstart_recipe(method: str) -> Recipe:
    """The embedded model learns generated tasks that it has not seen, with FedAvg or with Ferret.

    Args:
        method: "fedavg" or "ferret".
    """
    return parse_recipe(
        {
            "model": {"path": "builtin"},
            "data": {"train": "builtin", "partition": "task"},
            "federation": {"rounds": 20, "clients_per_round": 12},
            "local": {
                "optimizer": "sgd",
                "learning_rate": 0.3,
                "momentum": 0.9,
                "steps": 10,
                "batch_size": 4,
            },
            "evaluation": {
                "every": 5,
                "metrics": ["loss", "exact_match"],
                "max_new_tokens": 24,
                "batch_size": 64,
            },
            "method": {"name": method, **({"upload": "32KiB"} if method == "ferret" else {})},
        },
        "quickstart",
    )
