"""The answers that a run's metrics were made of, kept in its folder (predictions.jsonl).

One line a sample and model version, version 0 being the base model:

    {"version": 0, "sample": 7, "prompt": "...", "references": ["..."], "answer": "..."}
    {"version": 2, "sample": 7, "answer": "..."}

A prompt and its references stand in the lines of version 0 alone. Of one evaluation at most
``MOST`` answers are kept. base.json and the lines of metrics.jsonl have the SHA-256 of their
version's lines, under ``predictions``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fullfed.errors import UserError
from fullfed.evaluation.evaluate import Prediction, evenly_spaced
from fullfed.files import write_atomically
from fullfed.runs.folder import RunFolder
from fullfed.strict_json import parse_json

MOST = 100


def write_predictions(
    folder: RunFolder, version: int, predictions: Sequence[Prediction]
) -> dict[str, str]:
    """Keep the answers of a version, in the place of any of this version and of later ones.

    Returns:
        what the version's record says of them; nothing where there are no answers.
    """
    if not predictions:
        return {}
    lines = [_line(version, one) for one in evenly_spaced(predictions, MOST)]
    kept = [line for line in _lines(folder) if _parsed(folder, line)["version"] < version]
    _write(folder, [*kept, *lines])
    return {"predictions": _hash(lines)}


def forget_predictions(folder: RunFolder, version: int) -> None:
    """Leave out the answers of versions later than this one."""
    lines = _lines(folder)
    kept = [line for line in lines if _parsed(folder, line)["version"] <= version]
    if len(kept) < len(lines):
        _write(folder, kept)


def read_predictions(folder: RunFolder) -> dict[int, list[Prediction]]:
    """The answers by version, ascending; empty where the run's metrics are of no answers.

    Raises:
        UserError: there is no run here, or its answers are not those that it wrote.
    """
    records = {0: folder.base(), **{r["round"] + 1: r for r in folder.metrics()}}
    recorded = {v: r["predictions"] for v, r in records.items() if "predictions" in r}
    lines: dict[int, list[bytes]] = {version: [] for version in recorded}
    for line in _lines(folder):
        version = _parsed(folder, line)["version"]
        if version in lines:  # others are of a round that a crash cut short
            lines[version].append(line)
    for version, expected in recorded.items():
        if _hash(lines[version]) != expected:
            raise UserError(
                f"{_file(folder)}: the answers of version {version} are not those that the run "
                "wrote; restore a copy of it."
            )
    asked = {one.sample: one for one in _predictions(folder, lines.get(0, ()))}
    return {
        version: [
            replace(asked[line["sample"]], answer=line["answer"])
            for line in (_parsed(folder, line) for line in of_version)
        ]
        for version, of_version in lines.items()
    }


def _predictions(folder: RunFolder, lines: Iterable[bytes]) -> list[Prediction]:
    """Of lines of version 0."""
    return [
        Prediction(one["sample"], one["prompt"], tuple(one["references"]), one["answer"])
        for one in (_parsed(folder, line) for line in lines)
    ]


def _line(version: int, one: Prediction) -> bytes:
    asked = {} if version else {"prompt": one.prompt, "references": one.references}
    value = {"version": version, "sample": one.sample, **asked, "answer": one.answer}
    return json.dumps(value).encode()


def _parsed(folder: RunFolder, line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
        if isinstance(value["version"], int):
            return dict(value)
    except (ValueError, TypeError, KeyError):
        pass  # said below
    raise UserError(f"{_file(folder)}: this is not what the run wrote; restore a copy of it.")


def _lines(folder: RunFolder) -> list[bytes]:
    file = _file(folder)
    return file.read_bytes().splitlines() if file.exists() else []


def _write(folder: RunFolder, lines: Sequence[bytes]) -> None:
    write_atomically(_file(folder), b"".join(line + b"\n" for line in lines))


def _hash(lines: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def _file(folder: RunFolder) -> Path:
    return folder.path / "predictions.jsonl"
