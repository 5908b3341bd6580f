"""The quickstart's recipe: the embedded model learns twenty generated tasks it has not seen."""

from __future__ import annotations

from fullfed.config import Recipe, parse_recipe

_METHODS = {
    "fedavg": {"name": "fedavg"},
    "ferret": {"name": "ferret", "upload": "32KiB"},
}


def quickstart_recipe(method: str) -> Recipe:
    """The recipe with FedAvg or with Ferret.

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
            "method": _METHODS[method],
        },
        "quickstart",
    )
