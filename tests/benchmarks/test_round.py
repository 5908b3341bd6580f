"""The benchmark of a round's parts: they are all of the round, and none is counted twice."""

from __future__ import annotations

import json
import runpy
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
# As in test_training.py: the file is run, not imported.
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    benchmark = SimpleNamespace(**runpy.run_path(f"{ROOT}/benchmarks/round.py"))
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

RECIPE = """
[model]
path = "$FULLFED_SHARED/models/stories260k"
[data]
train = "train.jsonl"
test_samples = 2
partition = "iid"
clients = 2
[federation]
rounds = 2
clients_per_round = 2
[local]
optimizer = "sgd"
learning_rate = 0.1
steps = 1
batch_size = 2
[method]
name = "ferret"
coordinates = 100
"""


@pytest.mark.usefixtures("shared")
def test_the_parts_of_a_round_are_the_round(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("train.jsonl", f"{tmp_path}/train.jsonl"))
    record = json.dumps({"instruction": "Say how it ended.", "input": "", "output": "Well."})
    (tmp_path / "train.jsonl").write_text(f"{record}\n" * 10)
    options = Namespace(
        recipe=tmp_path / "recipe.toml", methods=["fedavg", "ferret"], rounds=1, set=[]
    )
    began = time.perf_counter()
    found = benchmark.measure(options, tmp_path)
    spent = time.perf_counter() - began
    assert found["cohort"] == 2
    for method, own in found["methods"].items():
        assert own["beyond"] == pytest.approx(sum(own[part] for part in benchmark.PARTS))
        assert min(own[part] for part in benchmark.PARTS) >= 0
        assert (own["passes"] > 0) == (method == "ferret")
        assert 0 < own["bare_seconds"] * (1 + (own["beyond"] + own["passes"]) / 100) < spent
