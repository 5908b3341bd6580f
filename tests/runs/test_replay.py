"""The log alone is the run: replayed, verified and exported without any data."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullfed.config import parse_recipe
from fullfed.errors import UserError
from fullfed.federation.log import Log, read_log
from fullfed.federation.messages import Plan, encode
from fullfed.federation.replica import content_hash
from fullfed.files import seal
from fullfed.runs import run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import measure, replay, verify
from runs.small import ROUNDS, recipe, write_model


def final_hash(out: Path) -> str:
    return str(json.loads((out / "summary.json").read_text())["model_hash"])


def test_a_finished_run_verifies(finished: Path) -> None:
    # The base, two measured rounds, and the summary.
    assert verify(RunFolder(finished)) == 4


def test_verifying_needs_no_data_and_changes_nothing(copied: Path, ingredients: Path) -> None:
    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(text.replace("train.jsonl", "gone.jsonl"))
    before = {path: path.read_bytes() for path in copied.iterdir()}
    verify(RunFolder(copied))
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


def test_a_run_that_was_stopped_verifies(copied: Path) -> None:
    (copied / "summary.json").unlink()
    log = (copied / "updates.log").read_bytes()
    (copied / "updates.log").write_bytes(log[:-5])
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    assert verify(RunFolder(copied)) == 2


def test_any_flipped_byte_of_the_log_is_found(copied: Path) -> None:
    log = (copied / "updates.log").read_bytes()
    for place in range(0, len(log), 199):
        damaged = bytearray(log)
        damaged[place] ^= 4
        (copied / "updates.log").write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            verify(RunFolder(copied))
        assert "\n" not in str(caught.value)


def forge(copied: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Write another log with right checksums throughout."""
    records = list(read_log(copied / "updates.log"))
    (copied / "updates.log").unlink()
    with Log(copied / "updates.log") as log:
        for record in change(records):
            log.append(record)


def nudge(records: list[bytes]) -> list[bytes]:
    """The last number of the second update, one bit larger."""
    nudged = bytearray(records[1])
    nudged[-4] ^= 1
    return [records[0], bytes(nudged), *records[2:]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nudge, "record 1 is not the one that the run wrote"),
        (lambda records: records[:-1], "4 records were written and 3 are whole"),
        (lambda records: records[:1], "4 records were written and 1 are whole"),
        (lambda records: records[1:], "record 0 is not the one"),
        (lambda records: [records[1], records[0], *records[2:]], "record 0 is not the one"),
        (lambda records: [*records, records[-1]], "update 3 does not follow model version 4"),
        (lambda records: [b"junk", *records], "record 0 is not the one"),
    ],
)
def test_a_log_that_is_not_the_one_the_run_wrote_is_found(
    copied: Path, change: Callable[[list[bytes]], list[bytes]], reason: str
) -> None:
    forge(copied, change)
    with pytest.raises(UserError, match=reason):
        verify(RunFolder(copied))


def forge_all(copied: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """As ``forge``, and the rounds' lines and the summary are made to fit: only hashes are left."""
    forge(copied, change)
    folder = RunFolder(copied)
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    final = json.loads((copied / "summary.json").read_text())
    (copied / "snapshot.safetensors").unlink()
    with Log(copied / "updates.log") as log:
        records = [log.read(number) for number in range(len(log))]
    digest, follows = b"", folder.base()["checksum"]
    for number, payload in enumerate(records):
        digest = hashlib.sha256(digest + payload).digest()
        lines[number] = seal({**lines[number], "log": digest.hex()}, follows)
        follows = lines[number]["checksum"]
    folder.rewrite_metrics(lines)
    folder.write_summary(final)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nudge, "model at version 2 is not the one the run recorded"),
        (lambda records: [records[1], records[0], *records[2:]], "update 1 does not follow"),
        (lambda records: [b"junk", *records[1:]], "record 0 is not an update"),
        (lambda records: [encode(Plan(0, 0)), *records[1:]], "record 0 is not an update"),
    ],
)
def test_a_forged_run_is_found(
    copied: Path, change: Callable[[list[bytes]], list[bytes]], reason: str
) -> None:
    """By somebody who knows how the files are sealed."""
    forge_all(copied, change)
    with pytest.raises(UserError, match=reason):
        verify(RunFolder(copied))


def test_a_run_of_an_earlier_protocol_is_neither_replayed_nor_resumed(copied: Path) -> None:
    """Protocol 1 was the safetensors format."""
    text = b'{"__metadata__":{"fullfed":"{}"}}'
    forge_all(copied, lambda records: [len(text).to_bytes(8, "little") + text, *records[1:]])
    recipe = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(recipe.replace("rounds = 4", "rounds = 5"))
    for act in (lambda: verify(RunFolder(copied)), lambda: run.resume(copied)):
        with pytest.raises(UserError, match=r"an earlier fullfed's.*take the fullfed that"):
            act()


@pytest.mark.parametrize(("place", "snapshot"), [(2, False), (3, False), (3, True)])
def test_a_run_with_a_record_that_is_no_update_is_not_resumed(
    copied: Path, place: int, snapshot: bool
) -> None:
    kept = (copied / "snapshot.safetensors").read_bytes()
    forge_all(copied, lambda records: [*records[:place], b"junk", *records[place + 1 :]])
    if snapshot:  # of version 4, which needs the last record
        (copied / "snapshot.safetensors").write_bytes(kept)
    recipe = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(recipe.replace("rounds = 4", "rounds = 5"))
    with pytest.raises(UserError, match=rf"record {place} is not an update \(the message does not"):
        run.resume(copied)


def test_a_run_whose_model_is_not_the_recorded_one_is_not_resumed(copied: Path) -> None:
    """The newest record is of version 4; only then does the run go on."""
    forge_all(copied, nudge)
    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(text.replace("rounds = 4", "rounds = 5"))
    with pytest.raises(UserError, match="model at version 4 is not the one the run recorded"):
        run.resume(copied)
    assert len((copied / "metrics.jsonl").read_text().splitlines()) == ROUNDS


def alter(copied: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = copied / name
    lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
    last = json.loads(lines[-1])
    change(last)
    path.write_text("".join(f"{line}\n" for line in [*lines[:-1], json.dumps(last)]))


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "base.json"])
def test_an_altered_hash_is_found(copied: Path, name: str) -> None:
    alter(copied, name, lambda record: record.update(model_hash="0" * 64))
    with pytest.raises(UserError, match=rf"{name}: this is not what the run wrote"):
        verify(RunFolder(copied))


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "base.json"])
@pytest.mark.parametrize(
    "text", ["no json\n", "[]\n", "3\n", "{}\n", '{"round": 0}\n', '{"model_hash"\n']
)
def test_a_record_that_is_none_is_found(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: this is not what the run wrote"):
        verify(RunFolder(copied))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("recipe.toml", "there is no run here; name the folder of a run"),
        ("base.json", r"base\.json: the file is missing; restore a copy of it"),
        ("updates.log", "there is no log here"),
    ],
)
def test_a_missing_file_is_named(copied: Path, name: str, reason: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UserError, match=reason):
        verify(RunFolder(copied))


def test_another_base_model_is_found(copied: Path, ingredients: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=1)
    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(
        text.replace(str(ingredients / "model"), str(tmp_path / "other"))
    )
    for function in (verify, replay):
        with pytest.raises(UserError, match="not the base model the run began with"):
            function(RunFolder(copied))
    with pytest.raises(UserError, match="not the base model the run began with"):
        run.resume(copied)


def test_other_data_are_found(copied: Path, ingredients: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "train.jsonl"
    lines = (ingredients / "train.jsonl").read_text().splitlines(keepends=True)
    shorter.write_text("".join(lines[1:]))
    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(
        text.replace(str(ingredients / "train.jsonl"), str(shorter))
    )
    with pytest.raises(UserError, match="not those the run began with"):
        run.resume(copied)


def test_a_log_of_another_method_is_found(copied: Path, ingredients: Path, tmp_path: Path) -> None:
    run.start(recipe(ingredients, method={"name": "fedavg"}), tmp_path / "fedavg")
    theirs = list(read_log(tmp_path / "fedavg" / "updates.log"))
    shutil.copy(tmp_path / "fedavg" / "updates.log", copied / "updates.log")
    with pytest.raises(UserError, match="record 0 is not the one that the run wrote"):
        verify(RunFolder(copied))
    forge_all(copied, lambda _: theirs)
    with pytest.raises(UserError, match="update 0 does not fit the model and the method"):
        verify(RunFolder(copied))


def test_an_export_is_the_replica_as_an_ordinary_checkpoint(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    export(RunFolder(finished), target)
    model = AutoModelForCausalLM.from_pretrained(target)
    assert content_hash(dict(model.named_parameters())) == final_hash(finished)
    replica, tokenizer = replay(RunFolder(finished))
    ids = torch.tensor([tokenizer("Say red 3 times.").input_ids])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, replica.eval()(ids).logits)
    loaded = AutoTokenizer.from_pretrained(target)
    assert loaded("Say red.").input_ids == tokenizer("Say red.").input_ids
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_of_16_bits_is_exported_as_one(
    ingredients: Path, tmp_path: Path, dtype: str
) -> None:
    changes = {"model": {"dtype": dtype}, "federation": {"rounds": 1}}
    run.start(recipe(ingredients, **changes), tmp_path / "run")
    verify(RunFolder(tmp_path / "run"))
    export(RunFolder(tmp_path / "run"), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    replayed, _ = replay(RunFolder(tmp_path / "run"))
    exported = dict(model.named_parameters())
    assert content_hash(exported) == content_hash(dict(replayed.named_parameters()))


def test_an_export_into_an_empty_folder_fills_it(finished: Path, tmp_path: Path) -> None:
    export(RunFolder(finished), tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_an_export_overwrites_nothing(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="there is something here already; name a new folder"):
            export(RunFolder(finished), target)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing_behind(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerBase

    def save(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", save)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        export(RunFolder(finished), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_run_its_export_and_its_own_records_measure_the_same(
    finished: Path, ingredients: Path, tmp_path: Path
) -> None:
    changed = recipe(ingredients, evaluation={"metrics": ["loss", "rouge_l"], "max_new_tokens": 4})
    export(RunFolder(finished), tmp_path / "model")
    of_run = measure(str(finished), changed)
    assert of_run == measure(str(tmp_path / "model"), changed)
    summary = json.loads((finished / "summary.json").read_text())
    assert of_run["loss"] == summary["loss"]["final"]
    base = measure(str(ingredients / "model"), changed)
    assert base["loss"] == summary["loss"]["initial"]


REPLAY = """
import sys, pathlib, torch
from fullfed.federation.replica import content_hash
from fullfed.files import seal
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay
for threads in (1, 2):
    torch.set_num_threads(threads)
    for folder in sys.argv[1:]:
        model, _ = replay(RunFolder(pathlib.Path(folder)))
        assert torch.get_num_threads() == threads
        print(content_hash(dict(model.named_parameters())))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, ingredients: Path) -> list[Path]:
    """Runs of the embedded model, large enough for torch to use its threads, and their hashes."""
    folder = tmp_path_factory.mktemp("large")
    methods = {
        "own": {"name": "ferret", "coordinates": 2000},
        "shared": {"name": "ferret", "coordinates": 2000, "seeds": "shared"},
        "few bits": {"name": "ferret", "upload": "2KiB"},
        "normal": {"name": "ferret", "coordinates": 40, "basis": "normal"},
        "fedavg": {"name": "fedavg", "server_step": 0.7},
        "16-bit": {"name": "fedavg"},
    }
    for name, method in methods.items():
        tables = {
            "model": {"path": "builtin"},
            "data": {"train": str(ingredients / "train.jsonl"), "hold_out": "white"},
            "federation": {"rounds": 2, "clients_per_round": 2},
            "local": {"steps": 1, "batch_size": 2},
            "method": method,
        }
        if name == "16-bit":
            tables["codec"] = {"name": "dense", "precision": "bfloat16"}
        tables["data"]["partition"] = "category"
        run.start(parse_recipe(tables, "the test"), folder / name)
    return [folder / name for name in methods]


def test_one_thread_and_two_rebuild_the_same_model_from_one_log(large: list[Path]) -> None:
    expected = [final_hash(folder) for folder in large]
    assert len(set(expected)) == len(expected)
    command = [sys.executable, "-c", REPLAY, *map(str, large)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected * 2


def test_the_recorded_versions_are_those_of_the_rounds(finished: Path) -> None:
    """Each measured round's hash is the replica's after as many updates."""
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    hashes = {record["round"] for record in records if record["model_hash"]}
    assert hashes == {1, ROUNDS - 1}


def test_a_model_is_measured_in_the_recipes_precision(ingredients: Path, tmp_path: Path) -> None:
    short = recipe(ingredients, model={"dtype": "bfloat16"}, federation={"rounds": 1})
    run.start(short, tmp_path / "run")
    base = RunFolder(tmp_path / "run").base()
    model = str(ingredients / "model")
    assert measure(model, short)["loss"] == base["loss"]
    assert measure(model, recipe(ingredients))["loss"] != base["loss"]


def test_a_run_of_an_earlier_version_is_called_one(copied: Path) -> None:
    base = RunFolder(copied).base()
    (copied / "base.json").write_text(
        json.dumps({name: base[name] for name in ("model_hash", "data_hash", "loss")})
    )
    with pytest.raises(UserError, match="is of an earlier version of fullfed"):
        verify(RunFolder(copied))
