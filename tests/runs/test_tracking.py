"""What TensorBoard and Weights & Biases are told of a run is what its files say."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.tracking import TensorBoard, WeightsAndBiases, numbers_of

from .small import recipe


def records(file: Path) -> Iterator[Record]:
    """What an offline run has left: a header of 7 bytes, and records in LevelDB's log format, which
    has blocks of 32 KiB (more than there is here)."""
    data, place = file.read_bytes(), 7
    assert len(data) < 32 << 10
    while place < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1, "a whole record"
        record = Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        yield record
        place += 7 + length


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of history in the files that offline runs have left, in the order of time."""
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for file in sorted(folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime)
        for record in records(file)
        if record.HasField("history")
    ]


def test_weights_and_biases_has_every_rounds_numbers_also_of_a_run_that_went_on(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    run.start(
        recipe(ingredients, federation={"rounds": 2}), out, [WeightsAndBiases("project", out)]
    )
    text = (out / "recipe.toml").read_text().replace("rounds = 2", "rounds = 3")
    (out / "recipe.toml").write_text(text)
    time.sleep(1.1)  # its folders are named after the second
    run.resume(out, [WeightsAndBiases("project", out)])
    rows = logged(out / "wandb")
    assert [row["_step"] for row in rows] == [1, 2, 3]
    for row, line in zip(rows, RunFolder(out).metrics(), strict=True):
        told = {name: value for name, value in row.items() if not name.startswith("_")}
        assert told == pytest.approx(numbers_of(line))
    assert rows[0]["bytes/up"] > 0
    assert rows[1]["loss"] < 10
    names = {file.stem for file in (out / "wandb").rglob("*.wandb")}
    assert len(names) == 1, "the same run there"


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("tensorboard", lambda: TensorBoard("events")),
        ("wandb", lambda: WeightsAndBiases("project", "run")),
    ],
)
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, make: Any
) -> None:
    monkeypatch.setattr("fullfed.runs.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{package} is not installed; install it with pip"):
        make()
