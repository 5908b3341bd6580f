"""A comparison in one process: searches, runs, failures, and what is made of them."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from comparisons import inline
from fullfed.comparisons import comparison
from fullfed.comparisons.comparison import Comparison
from fullfed.comparisons.folder import ComparisonFolder
from fullfed.comparisons.plan import Task
from fullfed.comparisons.progress import ComparisonCallback
from fullfed.comparisons.search import Trials, hold_out
from fullfed.data.federated import FederatedData
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.files import seal
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import tokenize_data
from fullfed.runs.replay import replay
from runs.small import tables, write_data, write_model

LABELS = ["fedavg", "few", "wild"]


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "carry_out", inline.carry_out)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe, with a variant of Ferret, and one that diverges whatever is tried."""
    folder = tmp_path_factory.mktemp("recipe")
    write_model(folder / "model")
    write_data(folder / "train.jsonl")
    compare = {
        "few": {"method": {"name": "ferret", "coordinates": 40}},
        "wild": {"method": {"name": "fedavg"}, "local": {"learning_rate": 1e30}},
    }
    (folder / "small.toml").write_text(tomli_w.dumps({**tables(folder), "compare": compare}))
    return folder / "small.toml"


class Lines(ComparisonCallback):
    """Keeps what is worth keeping."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, task: Task, text: str) -> None:
        self.lines.append(f"{task}: {text}")


def carry_out(
    recipe: Path, out: Path, labels: list[str] = LABELS, seeds: int = 2
) -> tuple[dict[str, Any], list[str]]:
    told = Lines()
    ours = Comparison(recipe, labels, seeds=seeds, trials=3)
    return ours.carry_out(ComparisonFolder(out), "typed", told), told.lines


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nobody changes."""
    out = tmp_path_factory.mktemp("finished") / "out"
    carry_out(recipe, out)
    return out


@pytest.fixture(scope="module")
def data(finished: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((finished / "comparison.json").read_text())
    return content


def methods(data: dict[str, Any]) -> dict[str, Any]:
    return {method["label"]: method for method in data["methods"]}


def test_the_data_say_what_was_asked_and_where_it_was_measured(data: dict[str, Any]) -> None:
    assert (data["title"], data["command"]) == ("small", "typed")
    assert data["recipe"]["method"] == {"name": "ferret", "coordinates": 300}
    assert data["environment"]["torch"]
    assert data["environment"]["jobs"] == 1
    assert [m["label"] for m in data["methods"]] == LABELS
    assert methods(data)["few"]["changes"] == {"method.name": "ferret", "method.coordinates": 40}
    assert methods(data)["few"]["title"] == "Ferret"


def test_every_method_has_the_same_budget_and_its_best_rate_is_used(
    finished: Path, data: dict[str, Any]
) -> None:
    search = data["search"]
    assert (search["trials"], search["rounds"], search["validation_samples"]) == (3, 2, 4)
    for label, trials in search["methods"].items():
        assert len(trials) == 3
        best = min(trials, key=lambda t: math.inf if t["loss"] is None else t["loss"])
        if best["loss"] is not None:
            assert methods(data)[label]["learning_rate"] == best["learning_rate"]
            used = load_recipe(finished / "runs" / label / "seed-1" / "recipe.toml")
            assert used.local.learning_rate == best["learning_rate"]
            assert used.federation.seed == 1
    assert len({t["loss"] for t in search["methods"]["few"]}) == 3, "rates make a difference"


def test_a_method_that_always_diverges_is_recorded_and_the_others_go_on(
    data: dict[str, Any],
) -> None:
    wild = methods(data)["wild"]
    for trial in data["search"]["methods"]["wild"]:
        assert trial["loss"] is None
        assert "not finite" in trial["reason"]
    for measured in wild["runs"]:
        assert "round 0: no client sent a usable report" in measured["failed"]
        assert measured["rounds"] == []
        assert measured["base"]["loss"] > 0
    empty = {"values": [None, None], "mean": None, "spread": None}
    assert all(column == empty for column in wild["columns"].values())
    assert all(m["failed"] is None for m in methods(data)["few"]["runs"])


def test_the_numbers_are_those_of_the_run_folders(finished: Path, data: dict[str, Any]) -> None:
    """Reckoned again from metrics.jsonl, in other words."""
    target = data["target"]["value"]
    for label in ("fedavg", "few"):
        values: dict[str, list[Any]] = {}
        for measured in methods(data)[label]["runs"]:
            lines = (finished / measured["folder"] / "metrics.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            assert [r["round"] for r in measured["rounds"]] == [1, 2, 3, 4]
            assert [r["loss"] for r in measured["rounds"]] == [r["loss"] for r in records]
            assert [r["loss"] is None for r in records] == [True, False, True, False]
            reached = [r["round"] + 1 for r in records if (r["loss"] or 1e9) <= target]
            found = {
                "loss": records[-1]["loss"],
                "rounds_to_target": min(reached, default=None),
                "up_bytes": sum(sum(r["bytes"]["up_by_client"].values()) for r in records),
                "down_bytes": sum(sum(r["bytes"]["down_by_client"].values()) for r in records),
                "peak_memory_bytes": max(r["peak_memory_bytes"] for r in records),
            }
            for part in ("train", "encode", "aggregate"):
                found[f"{part}_seconds"] = sum(r["seconds"][part] for r in records)
            found["total_seconds"] = sum(v for k, v in found.items() if k.endswith("_seconds"))
            for name, value in found.items():
                values.setdefault(name, []).append(value)
        columns = methods(data)[label]["columns"]
        assert columns.keys() == values.keys()
        for name, expected in values.items():
            assert columns[name]["values"] == pytest.approx(expected)
            if None in expected:
                assert columns[name]["mean"] is None
            else:
                assert columns[name]["mean"] == pytest.approx(sum(expected) / 2)
                assert columns[name]["spread"] == pytest.approx(statistics.stdev(expected))


def test_the_target_is_most_of_the_way_to_the_best(data: dict[str, Any]) -> None:
    base = {m["base"]["loss"] for label in LABELS for m in methods(data)[label]["runs"]}
    assert len(base) == 1, "everybody is measured on the same samples"
    best = min(methods(data)[label]["columns"]["loss"]["mean"] for label in ("fedavg", "few"))
    assert data["target"]["value"] == pytest.approx(0.1 * base.pop() + 0.9 * best)
    assert "90%" in data["target"]["meaning"]


def test_a_run_is_the_one_that_fullfed_run_carries_out(finished: Path, tmp_path: Path) -> None:
    theirs = finished / "runs" / "few" / "seed-1"
    alone = run.start(load_recipe(theirs / "recipe.toml"), tmp_path / "run")
    assert alone["model_hash"] == json.loads((theirs / "summary.json").read_text())["model_hash"]


def test_a_trials_loss_is_that_of_a_run_on_the_rest_of_the_data(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more through an ordinary run, whose clients have lost the validation part."""
    changed = load_recipe(recipe, ["federation.rounds=2", "local.learning_rate=0.05"])
    base = assemble(changed)
    trial = Trials(changed, rounds=2).run(0.05)
    kept, validation = hold_out([c.examples for c in base.data.clients], 0)

    def shorter(*arguments: Any) -> FederatedData:
        whole = tokenize_data(*arguments)
        clients = zip(whole.clients, kept, strict=True)
        rest = tuple(type(c)(c.name, own) for c, own in clients)
        return FederatedData(rest, whole.test, 0, 0)

    monkeypatch.setattr("fullfed.runs.assembly.tokenize_data", shorter)
    run.start(changed, tmp_path / "run")
    model, _ = replay(RunFolder(tmp_path / "run"))
    assert trial.loss == evaluate_loss(model, validation, changed.evaluated_together)


def test_it_goes_on_with_what_is_missing(recipe: Path, finished: Path, tmp_path: Path) -> None:
    """One method first, then interrupted in the middle of the rest."""
    out = tmp_path / "out"
    carry_out(recipe, out, ["few"], seeds=1)
    kept = (out / "runs" / "few" / "seed-0" / "summary.json").read_bytes()
    real, calls = inline.processes.carry_out_run, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments[1:3])
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline.processes, "carry_out_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            carry_out(recipe, out, ["fedavg", "few"])
    assert calls == [("fedavg", 0), ("fedavg", 1)], "what is finished is not done again"
    again, lines = carry_out(recipe, out, ["fedavg", "few"])
    done = ["fedavg seed 1: 4 rounds", "few seed 1: 4 rounds"]
    assert [line.split("  ")[0] for line in lines] == done
    assert (out / "runs" / "few" / "seed-0" / "summary.json").read_bytes() == kept
    whole = methods(json.loads((finished / "comparison.json").read_text()))
    for label, method in methods(again).items():
        for name in ("loss", "up_bytes", "down_bytes"):
            assert method["columns"][name] == whole[label]["columns"][name]


def test_a_search_goes_on_where_it_was(recipe: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    folder = ComparisonFolder(out)
    whole = folder.trials("few")
    folder.write_trials("few", whole[:1])
    _, lines = carry_out(recipe, out, ["few"], seeds=1)
    assert folder.trials("few") == whole
    assert [line.split("  ")[0] for line in lines] == [
        "few search: trial 2/3",
        "few search: trial 3/3",
    ]


def test_a_method_whose_search_fails_is_recorded_and_the_others_go_on(
    recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "search" / "few.json").unlink()

    def refuse(*arguments: Any) -> Trials:
        raise UserError("the disk is full.")

    monkeypatch.setattr(inline.processes, "Trials", refuse)
    found, _ = carry_out(recipe, out, ["fedavg", "few"])
    assert [r["failed"] for r in methods(found)["few"]["runs"]] == [
        "in its search: the disk is full."
    ] * 2
    assert methods(found)["few"]["learning_rate"] == 0.2, "where it would have started"
    assert found["search"]["methods"]["few"] == []
    assert methods(found)["fedavg"]["columns"]["loss"]["mean"] is not None


def test_a_damaged_record_is_named(recipe: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "search" / "few.json").write_text("[{")
    with pytest.raises(UserError, match=r"few.json: this is not what the comparison wrote"):
        carry_out(recipe, out, ["few"], seeds=1)


def test_where_every_run_fails_it_is_an_error(recipe: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    with pytest.raises(UserError, match="every run failed; wild seed 0: round 0: no client"):
        carry_out(recipe, out, ["wild"], seeds=1)


def test_a_run_that_does_not_belong_there_is_an_error(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    runs = out / "runs" / "few"
    (runs / "seed-0").rename(runs / "elsewhere")
    (runs / "seed-1").rename(runs / "seed-0")
    with pytest.raises(UserError, match=r"few/seed-0: this is not the run that belongs here"):
        carry_out(recipe, out, ["few"], seeds=1)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluation.metrics=['rouge_l']", "evaluation.metrics lacks the loss"),
        ("compare.few.method.coordinates=9999999", "9999999 coordinates for a model of"),
        ("federation.clients_per_round=9", "9 clients a round, but"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_begun(
    recipe: Path, override: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        Comparison(recipe, ["fedavg", "few"], [override])


def test_the_budget_in_words(recipe: Path) -> None:
    words = Comparison(recipe, ["fedavg"], ["federation.rounds=20"], trials=3).budget
    assert "the best of 3 trials of 4 rounds (24 visits) on 4 validation samples" in words


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("base.json", "the base model's loss is not finite."),
        ("metrics.jsonl", "its last loss is not finite."),
    ],
)
def test_a_run_whose_loss_is_missing_counts_as_failed(
    finished: Path, tmp_path: Path, file: str, reason: str
) -> None:
    """The numbers that a comparison is about are not in its files."""
    folder, task = ComparisonFolder(tmp_path / "copy"), Task("few", 0)
    shutil.copytree(finished, folder.path)
    assert comparison._without_loss(folder, task) == ""
    path = folder.run("few", 0).path / file
    *others, last = path.read_text().splitlines() if file != "base.json" else [path.read_text()]
    follows = json.loads(others[-1])["checksum"] if others else ""
    broken = json.dumps(seal({**json.loads(last), "loss": None}, follows))
    path.write_text("\n".join([*others, broken]) + "\n")
    assert comparison._without_loss(folder, task) == reason
