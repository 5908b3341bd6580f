"""The overhead benchmark: runs without extras, and adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WITHOUT_EXTRAS = """
import sys
sys.modules.update(datasets=None)  # importing it fails
sys.path.insert(0, sys.argv[1])
import bf16_replicas, overhead, sketch
overhead.main(sys.argv[2:])
"""
ARGUMENTS = "--shapes tiny --clients 2 --steps 1 --rounds 1 --length 8 --threads 1 --json"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, str(BENCHMARKS), *ARGUMENTS.split()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_runs_without_datasets(result: dict[str, Any]) -> None:
    methods = [row["method"] for row in result["rows"]]
    assert methods[0] == "FedAvg"
    assert any("normal" in method for method in methods)
    assert any("sign" in method for method in methods)
    assert result["machine"]["clients"] == 2


def test_the_parts_of_a_round_are_its_total(result: dict[str, Any]) -> None:
    fedavg = result["rows"][0]
    for row in result["rows"]:
        parts = [row[part] for part in ("local", "encoding", "aggregation", "messages")]
        assert min(parts) > 0
        assert row["total"] == pytest.approx(sum(parts))
        assert row["x FedAvg"] == pytest.approx(row["total"] / fedavg["total"])


def test_bytes_are_those_of_the_messages(result: dict[str, Any]) -> None:
    """FedAvg moves 4 bytes a parameter each way; Ferret 4 a coordinate, down for each client;
    FedKSeed 4 a candidate down. A hundredth is never exceeded, and used but for a header's room."""
    for row in result["rows"]:
        if "hundredth" in row["method"]:
            assert row["d"] / 25 - 1024 < row["up"] <= row["d"] / 25
            assert 2 * (row["up"] - 1024) < row["down"] < 2 * row["up"] + 8192
            continue
        if row["method"] == "FedAvg":
            up, down = 4 * row["d"], 4 * row["d"]
        elif row["method"] == "FedKSeed":
            up, down = 0, 4 * 4096
        elif "FedCyBGD" in row["method"]:
            up = down = 2 * (4 * 64 * 64 + 3 * 64 * 172 + 2 * 64)  # a layer, in 16 bits
        else:
            up = 4 * (65536 if "65,536" in row["method"] else 3900)
            down = up if "shared" in row["method"] else 2 * up
        assert up < row["up"] < up + 8192
        assert down < row["down"] < down + 8192
