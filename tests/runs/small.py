"""A federation on disk that runs in a second: a random Llama and a few made-up records."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fullfed.config import Recipe, parse_recipe
from fullfed.quickstart import MODEL_PATH
from fullfed.runs import run

ROUNDS = 4
CATEGORIES = ("red", "green", "blue", "black", "white")


def write_model(folder: Path, seed: int = 0) -> None:
    """The embedded model's tokenizer with a random model of width 8."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(path: Path) -> None:
    """Eight records of each category."""
    records = [
        {
            "instruction": f"Say {color} {n} times.",
            "output": " ".join([color] * n),
            "category": color,
        }
        for color in CATEGORIES
        for n in range(1, 9)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_ingredients(folder: Path) -> Path:
    """model/ and train.jsonl in a folder, which is returned."""
    write_model(folder / "model")
    write_data(folder / "train.jsonl")
    return folder


def tables(folder: Path) -> dict[str, Any]:
    """The recipe of a run of four rounds with two of four clients, as it stands in TOML."""
    return {
        "model": {"path": str(folder / "model")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "hold_out": "white",
            "partition": "category",
            "template": "alpaca",
        },
        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "snapshot_every": 2},
        "local": {"learning_rate": 0.2, "steps": 2, "batch_size": 2},
        "evaluation": {"every": 2},
        "method": {"name": "ferret", "coordinates": 300},
    }


def recipe(folder: Path, **changes: dict[str, Any]) -> Recipe:
    """The recipe with some keys of its tables changed; a method is replaced as a whole.

    A codec may stand in the method's table, as a table of its own.
    """
    if "codec" in changes.get("method", {}):
        method = dict(changes["method"])
        changes = {**changes, "codec": method.pop("codec"), "method": method}
    changed = tables(folder)
    for table, values in changes.items():
        changed[table] = values if table == "method" else {**changed.get(table, {}), **values}
    return parse_recipe(changed, "the test")


def go(folder: Path, out: Path) -> None:
    """Begin a run, or resume the one that is there."""
    torch.set_num_threads(1)
    if (out / "recipe.toml").exists():
        run.resume(out)
    else:
        run.start(recipe(folder), out)


def go_until_operation(folder: Path, out: Path, number: int) -> None:
    """Kill this process, as by kill -9, right before or after one of its durable operations.

    Each fsync and each replacement of a file counts twice: before it, and after it.
    """
    left = [number]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            die_if_due()
            result = function(*arguments)
            die_if_due()
            return result

        return called

    def die_if_due() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = deadly(os.fsync)
    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]
    go(folder, out)


def go_and_tell(folder: Path, out: Path, ready: Any) -> None:
    """As ``go``, once the parent has been told that it begins."""
    ready.set()
    go(folder, out)
    time.sleep(0)
