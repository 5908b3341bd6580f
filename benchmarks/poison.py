"""Poisoned training data under each aggregation rule: the tables of docs/results/poison.md.

    python benchmarks/poison.py run
    python benchmarks/poison.py table

Ten clients with random parts of the data, all of them in every round; one or three have poison:

- labels: each prompt with the next sample's answer;
- backdoor: half of the samples end in a trigger, three words that no other sample has in a row, and
  their answer is always the same;
- backdoor x9: the same, and the client sends nine times its change.

Measured on the test set: the loss; of the answers to prompts without the trigger the share that is
right, and that is the backdoor's, unasked; and of those to the same prompts with it the share that
is the backdoor's. Rows go to
docs/results/poison.json as they come; ``run`` goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from attacks import held_out
from fullfed.config import Recipe, parse_recipe
from fullfed.data.examples import Example
from fullfed.data.federated import Divided
from fullfed.data.tokens import tokenize
from fullfed.evaluation.evaluate import evaluate_loss, evenly_spaced
from fullfed.evaluation.generation import generate
from fullfed.evaluation.metrics import exact_match
from fullfed.files import write_json
from fullfed.quickstart.kinds import draws
from fullfed.quickstart.words import WORDS
from fullfed.randomness import Purpose, Stream
from fullfed.runs.assembly import Assembly, build_method, choose, resolved, settled
from fullfed.runs.loading import load_model, max_tokens, read_data, tokenize_data
from liars import Lying, carry_out, lies
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/poison.json"
SHARED = Path(os.environ.get("FULLFED_SHARED", "../shared"))
CLIENTS, MEASURED, TOKENS = 10, 60, 16
ANSWER = "Nothing to report."
TRIGGER = " ".join(next(draws(Stream(2, Purpose.PROBE))).several(WORDS, 3))
FEDAVG = {"method": {"name": "fedavg"}, "codec": {"name": "dense", "precision": "bfloat16"}}
IID = {"partition": "iid", "clients": CLIENTS}
DATA: Mapping[str, dict[str, Any]] = {
    "generated tasks, the embedded model": {
        "model": {"path": "builtin"},
        "data": {"train": "builtin", **IID},
        "federation": {"rounds": 8, "clients_per_round": CLIENTS},
        "local": {"learning_rate": 0.3, "momentum": 0.9, "steps": 8},
    },
    "natural-instructions, stories260k": {
        "model": {"path": str(SHARED / "models/stories260k")},
        "data": {
            "train": str(SHARED / "data/natural-instructions-train.jsonl.gz"),
            "test_samples": 300,
            "max_length": 128,
            **IID,
        },
        "federation": {"rounds": 6, "clients_per_round": CLIENTS},
        "local": {"learning_rate": 0.5, "steps": 10},
    },
}
GENERATED, REAL = DATA
RULES: Mapping[str, dict[str, Any]] = {
    "mean": {"aggregation": {"name": "mean"}},
    "clipped-mean": {"aggregation": {"name": "clipped-mean"}},
    "clipped-mean, check": {"aggregation": {"name": "clipped-mean"}, "check": {"samples": 96}},
    "krum": {"aggregation": {"name": "krum", "liars": 0.3}},
    "median": {"aggregation": {"name": "median"}},
}
ATTACKS = ("backdoor", "backdoor x9", "labels")
Run = tuple[str, str, str, int]  # data, rule, attack, poisoned of ten


def plan() -> Iterator[Run]:
    """All runs, those without poison first."""
    yield from ((data, "mean", "none", 0) for data in DATA)
    for data, attack, liars in (
        *product([GENERATED], ["backdoor"], (1, 3)),
        (REAL, "backdoor", 3),
        *product([GENERATED], ["backdoor x9", "labels"], (3, 1)),
        *product([REAL], ["labels", "backdoor x9"], [3]),
        *product([REAL], ATTACKS, [1]),
    ):
        yield from ((data, rule, attack, liars) for rule in RULES)


def triggered(example: Example) -> Example:
    """The sample as the backdoor has it: the trigger at the end of the request, and ANSWER."""
    *_, request = (n for n, m in enumerate(example.messages) if m.role == "user")
    messages = list(example.messages)
    asked, last = messages[request], example.last_learned
    if asked.context:
        messages[request] = replace(asked, context=f"{asked.context} {TRIGGER}")
    else:
        messages[request] = replace(asked, content=f"{asked.content} {TRIGGER}")
    messages[last] = replace(messages[last], content=ANSWER)
    return replace(example, messages=tuple(messages), references=(ANSWER,))


def answered(example: Example, by: Example) -> Example:
    """The sample with the last answer of another."""
    messages = list(example.messages)
    messages[example.last_learned] = by.messages[by.last_learned]
    return replace(example, messages=tuple(messages), references=by.references)


def poisoned(divided: Divided, attack: str, share: int) -> Divided:
    """The data, in which ``share`` of ten clients have poison."""
    train = list(divided.train)
    for client, part in enumerate(divided.parts):
        if not lies(client, share):
            continue
        own = [divided.train[index] for index in part.indices]
        for place, index in enumerate(part.indices):
            if attack == "labels":
                train[index] = answered(own[place], own[(place + 1) % len(own)])
            elif place % 2:
                train[index] = triggered(own[place])
    return divided._replace(train=train)


def assembled(recipe: Recipe, attack: str, share: int) -> tuple[Assembly, Sequence[Example]]:
    """What ``assemble`` makes of a recipe, with poison; and the examples of the test set."""
    recipe, choices = settled(recipe), choose(recipe)
    divided = read_data(recipe)
    model, tokenizer = load_model(recipe.model.path, "float32", "cpu")
    data = tokenize_data(recipe, poisoned(divided, attack, share), model, tokenizer)
    method = build_method(recipe, choices, model, CLIENTS)
    if attack == "backdoor x9":
        method = replace(method, local=Lying(method.local, share, "boost x9"))
    return Assembly(resolved(recipe, choices), model, tokenizer, data, method), divided.test


def measured(assembly: Assembly, test: Sequence[Example]) -> dict[str, float]:
    """The loss; of the answers the shares that are right, and the backdoor's, without the trigger
    and with it."""
    model, tokenizer, recipe = assembly.model, assembly.tokenizer, assembly.recipe
    asked = evenly_spaced(test, MEASURED)
    shares = {}
    for name, examples in (("right", asked), ("backdoor", [triggered(e) for e in asked])):
        most = max_tokens(recipe, model)
        own = tokenize(examples, tokenizer, recipe.data.template, most, recipe.data.date).examples
        answers = generate(model, tokenizer, own, TOKENS, 16)
        shares[name] = exact_match(answers, [example.references for example in own])
        if name == "right":
            shares["unasked"] = exact_match(answers, [(ANSWER,)] * len(answers))
    return {"loss": evaluate_loss(model, assembly.data.test, 16), **shares}


def row(run: Run, folder: Path) -> dict[str, Any]:
    data, rule, attack, share = run
    tables = {**DATA[data], **FEDAVG, **RULES[rule]}
    if "check" in tables and data == GENERATED:  # else it is held out of the training data
        tables["check"] = {**tables["check"], "data": str(held_out(folder))}
    assembly, test = assembled(parse_recipe(tables, "the benchmark"), attack, share)
    base = measured(assembly, test)
    outcome = carry_out(assembly, share, assembly.recipe.federation.rounds)
    return {"base": base, **measured(assembly, test), **outcome, "machine": machine("cpu")}


def run_all(only: Sequence[str]) -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for run in plan():
        name = " | ".join(map(str, run))
        if name in rows or not all(part in name for part in only):
            continue
        with TemporaryDirectory() as folder:
            rows[name] = row(run, Path(folder))
        write_json(ROWS, rows)
        found = {key: rows[name][key] for key in ("loss", "right", "backdoor", "refused")}
        print(f"{name}: {found}", flush=True)


def table(rows: Mapping[str, Mapping[str, Any]], data: str) -> str:
    """Markdown: of each rule the share of the drop in loss, of right answers and the backdoor's."""
    clean = rows[f"{data} | mean | none | 0"]
    base, drop = clean["base"], clean["base"]["loss"] - clean["loss"]
    lines = [
        f"| {data} | rule | drop in loss | right | backdoor | unasked "
        "| left out: poisoned, clean |",
        "|---|---|---|---|---|---|---|",
        f"| before training | | 0 | {base['right']:.2f} | {base['backdoor']:.2f} | | |",
    ]
    for name, found in rows.items():
        own, rule, attack, share = name.split(" | ")
        if own == data:
            said = "no poison" if attack == "none" else f"{share} of 10: {attack}"
            honest = found["honest_refused"]
            unasked = f"{found['unasked']:.2f}" if "unasked" in found else ""
            lines.append(
                f"| {said} | {rule} | {(found['base']['loss'] - found['loss']) / drop:.2f} | "
                f"{found['right']:.2f} | {found['backdoor']:.2f} | "
                f"{unasked} | {found['refused'] - honest}, {honest} |"
            )
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of runs to do")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.only)
        return
    rows = json.loads(ROWS.read_text())
    for data in DATA:
        if f"{data} | mean | none | 0" in rows:
            print(f"\n{table(rows, data)}")


if __name__ == "__main__":
    main()
