"""Bad input is one sentence on standard error, exit code 2, and nothing left half-written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from transformers import AutoTokenizer

from fullfed.cli import main
from fullfed.runs import assembly, run
from runs.small import recipe, tables, write_data, write_model


@pytest.fixture(scope="session")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, train.jsonl and recipe.toml."""
    folder = tmp_path_factory.mktemp("ingredients")
    write_model(folder / "model")
    write_data(folder / "train.jsonl")
    (folder / "recipe.toml").write_text(tomli_w.dumps(tables(folder)))
    return folder


@pytest.fixture(scope="session")
def finished(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round that nobody changes."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run.start(recipe(ingredients, federation={"rounds": 1}), out)
    return out


Complaint = Callable[..., str]


@pytest.fixture
def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complaint:
    """What the command line says to these arguments, having checked that it says it properly."""

    def run_main(*arguments: str | Path) -> str:
        capsys.readouterr()  # what transformers showed while the test wrote a model is not ours
        monkeypatch.setattr(sys, "argv", ["fullfed", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        assert stopped.value.code == 2
        assert "Traceback" not in shown.err + shown.out
        first, *more = shown.err.splitlines()
        assert not more, "one sentence on one line"
        assert first.startswith("error: ")
        assert first.endswith(".")
        return first.removeprefix("error: ")

    return run_main


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["modle.path=x"], "there is no key 'modle'; did you mean 'model'"),
        (
            ["federation.ronds=3"],
            "no key 'federation.ronds'; did you mean 'federation.rounds'",
        ),
        (["local.lr=3"], "there is no key 'local.lr'; remove it or correct its spelling"),
        (["federation.rounds=0"], "federation.rounds: input should be greater than 0"),
        (["federation.rounds=many"], "federation.rounds: input should be a valid integer"),
        (["federation.rounds=2.5"], "federation.rounds: input should be a valid integer"),
        (["federation.seed=-1"], "federation.seed: input should be greater than or equal to 0"),
        (["local.learning_rate=nan"], "local.learning_rate: input should be"),
        (["local.learning_rate=inf"], "local.learning_rate: input should be"),
        (["local.weight_decay=inf"], "local.weight_decay: input should be"),
        (["local.steps=3", "local.epochs=3"], "local: give steps or epochs, not both"),
        (["local.optimizer=lion"], "local.optimizer: there is no optimizer 'lion'; choose among"),
        (["model.dtype=int8"], "model.dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        (["evaluation.metrics=['bleu']"], "evaluation.metrics.0: input should be"),
        (["method.name=fedsgd"], "method.name: there is no method 'fedsgd'; choose among fedavg"),
        (["method.cordinates=3"], "no key 'method.cordinates'; did you mean 'method.coordinates'"),
        (["method.uplod=4kb"], "no key 'method.uplod'; did you mean 'method.upload'"),
        (["learning_rate=3"], "no key 'learning_rate'; did you mean 'local.learning_rate'"),
        (["data.rounds=3"], "no key 'data.rounds'; did you mean 'federation.rounds'"),
        (["method.rounds=3"], "no key 'method.rounds'; did you mean 'federation.rounds'"),
        (["local=3"], "local: should be a table"),
        (["evaluation.metrics=loss"], "evaluation.metrics: should be a list"),
        (["model.path=3"], "model.path: should be a text in quotes"),
        (["model.device=gpu"], "model.device: 'gpu' is no device; take 'auto', 'cpu', 'cuda' or"),
        (["method.coordinates=", "method.upload=4k"], "method: '4k' is not a number of bytes"),
        (["method.coordinates=", "method.upload=-1"], "method: -1 is not a number of bytes such"),
        (["method.coordinates=", "method.upload=[1]"], "method.upload: "),
        (["method.coordinates=", "method.upload=true"], "method.upload: should be a text"),
        (["method.name=fedavg", "method.coordinates=3"], "there is no key 'method.coordinates'"),
        (["method.coordinates=0"], "method: coordinates is at least 1"),
        (["method.coordinates=9999999"], "method.coordinates: 9999999 coordinates for a model of"),
        (
            ["method.upload=1KiB"],
            "method: give coordinates or upload, not both (on the command line",
        ),
        (
            ["method.server_step=fast"],
            "string as a number, or input should be 'auto'",
        ),
        (["memory.frozen=int8"], "memory.frozen: ferret trains every parameter in every visit"),
        (["memory.cache_inputs=1MiB"], "memory.cache_inputs: ferret trains the first layer in"),
        (["method.name=fedit", "memory.cache_inputs=1MiB"], "memory.cache_inputs: fedit trains"),
        (
            ["data.partition=task", "data.clients=4", "data.hold_out=", "data.test_samples=3"],
            'or take data.partition = "iid" for 4 clients of equal size',
        ),
        (
            ["data.hold_out=", "data.test_samples=40"],
            "data.test_samples: 40 examples to hold out of",
        ),
        (["simulation.failures=1"], "simulation.failures: input should be less than 1"),
        (["model.path=/nowhere/model"], "/nowhere/model: there is no model folder here"),
        (["data.train=/nowhere/data.jsonl"], "/nowhere/data.jsonl does not exist; check the path"),
        (["data.test=/nowhere/t.jsonl"], "The test set is /nowhere/t.jsonl, so nothing is held"),
        (["data.hold_out=pink"], "category 'pink' cannot be held out"),
        (["data.train="], "recipe.toml: data: the key 'data.train' is missing; add it, or"),
        (["data.partition=column"], "data: partition = 'column' needs the field that tells"),
        (["data.partition=hospital"], "data.partition: input should be 'task', 'category', 'file'"),
        (["data.train=/nowhere/*.csv"], "/nowhere/*.csv matches no file that can be read (.json, "),
        (
            ["data.train=", 'data.sources=[{name = "a", pth = "b"}]'],
            "there is no key 'data.sources.0.pth'; ",
        ),
        (
            ["federation.clients_per_round=5"],
            "federation.clients_per_round: 5 clients a round, but the data make only 4 clients",
        ),
        (["data.max_length=2"], "has no example whose answer fits into 2 tokens; raise max_length"),
        (["rounds"], "--set rounds: write it as key=value, such as federation.rounds=3"),
        (["model.path.deep=3"], "--set model.path.deep=3: 'path' is not a table of the recipe"),
        (["=3"], "there is no key ''"),
        (
            ["model.path=$FULLFED_NO_SUCH_VARIABLE/model"],
            "$FULLFED_NO_SUCH_VARIABLE/model: the environment variable FULLFED_NO_SUCH_VARIABLE",
        ),
        (
            ["data.train=${FULLFED_NO_SUCH_VARIABLE}"],
            "the environment variable FULLFED_NO_SUCH_VARIABLE is not set; set it",
        ),
    ],
)
def test_a_recipe_that_cannot_be_carried_out(
    ingredients: Path, tmp_path: Path, complaint: Complaint, changes: list[str], expected: str
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    out = tmp_path / "out"
    assert expected in complaint("run", ingredients / "recipe.toml", *options, "--out", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the key 'model' is missing; add it"),
        ("[model\n", "this is not valid TOML"),
        ("a = " + "[" * 5000, "this is not valid TOML"),
        ("[model]\npath = 'x'\npath = 'y'\n", "this is not valid TOML"),
        ("\xff\xfe", "this is not valid TOML"),
        ("[model]\npth = 'x'\n", "there is no key 'model.pth'"),
        ("model = 3\n", "model: should be a table"),
        ("[method]\ncoordinates = 3\n", "is missing; add it"),
    ],
)
def test_a_file_that_is_no_recipe(
    tmp_path: Path, complaint: Complaint, text: str, expected: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("latin-1"))
    said = complaint("run", path, "--out", tmp_path / "out")
    assert said.startswith(f"{path}: ")
    assert expected in said
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_recipe_that_is_not_there(tmp_path: Path, complaint: Complaint, name: str) -> None:
    said = complaint("run", tmp_path / name, "--out", tmp_path / "out")
    assert said.startswith(f"{tmp_path / name}: the recipe cannot be read")


def with_line(ingredients: Path, tmp_path: Path, line: str) -> Path:
    """The training data with another fourth line."""
    lines = (ingredients / "train.jsonl").read_text().splitlines()
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*lines[:3], line, *lines[4:]]))
    return path


@pytest.mark.parametrize(
    "line",
    [
        '{"instruction": "Say',
        "[1, 2]",
        '"text"',
        '{"instruction": "Say red."}',
        '{"instruction": "Say red.", "output": 3}',
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(
    ingredients: Path, tmp_path: Path, complaint: Complaint, line: str
) -> None:
    path = with_line(ingredients, tmp_path, line)
    out = tmp_path / "out"
    change = f"data.train={path}"
    said = complaint("run", ingredients / "recipe.toml", "--set", change, "--out", out)
    assert said.startswith(f"{path}, line 4: ")
    assert not out.exists()


def change_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def cut_weights(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-100])


def change_shape(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def remove_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "damage", [change_config, cut_weights, change_shape, remove_weights, remove_tokenizer]
)
def test_a_model_folder_that_is_damaged(
    ingredients: Path, tmp_path: Path, complaint: Complaint, damage: Callable[[Path], None]
) -> None:
    model = tmp_path / "model"
    write_model(model)
    damage(model)
    change = f"model.path={model}"
    out = tmp_path / "out"
    said = complaint("run", ingredients / "recipe.toml", "--set", change, "--out", out)
    assert said.startswith(f"{model}: the model cannot be loaded (")
    assert not out.exists()


def test_a_model_without_a_pad_token_is_the_same_model(ingredients: Path, tmp_path: Path) -> None:
    """It needs none: padding is neither attended to nor learned."""
    model = tmp_path / "model"
    write_model(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.pad_token is not None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    assert AutoTokenizer.from_pretrained(model).pad_token is None
    changes: dict[str, dict[str, Any]] = {
        "federation": {"rounds": 1},
        "evaluation": {"metrics": ["loss", "rouge_l"], "max_new_tokens": 3},
    }
    padded = run.start(recipe(ingredients, **changes), tmp_path / "padded")
    changes["model"] = {"path": str(model)}
    bare = run.start(recipe(ingredients, **changes), tmp_path / "bare")
    assert bare["model_hash"] == padded["model_hash"]
    assert (bare["loss"], bare["rouge_l"]) == (padded["loss"], padded["rouge_l"])


def test_training_that_diverges_names_the_client_and_keeps_the_run(
    ingredients: Path, tmp_path: Path, complaint: Complaint
) -> None:
    out = tmp_path / "out"
    options = ["--set", "local.learning_rate=1e30", "--out", str(out)]
    said = complaint("run", ingredients / "recipe.toml", *options)
    assert "round 0: no client sent a usable report (client" in said
    assert "not finite; lower local.learning_rate or set local.clip" in said
    assert "there is a run here already" in complaint("run", ingredients / "recipe.toml", *options)


def test_a_folder_with_a_run_in_it(ingredients: Path, finished: Path, complaint: Complaint) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    said = complaint("run", ingredients / "recipe.toml", "--out", finished)
    assert said == f"{finished}: there is a run here already; resume it, or name another folder."
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command", ["resume", "verify", "export"])
@pytest.mark.parametrize("name", ["missing", "."])
def test_a_folder_without_a_run(
    tmp_path: Path, complaint: Complaint, command: str, name: str
) -> None:
    folder = tmp_path / name
    more = [tmp_path / "target"] if command == "export" else []
    said = complaint(command, folder, *more)
    assert said == f"{folder}: there is no run here; name the folder of a run."
    assert list(tmp_path.iterdir()) == []


def test_an_export_over_something(finished: Path, tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    said = complaint("export", finished, tmp_path)
    assert said == f"{tmp_path}: there is something here already; name a new folder."
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("model", ["/nowhere/model", "nobody here"])
def test_a_model_to_evaluate_that_is_not_there(
    ingredients: Path, complaint: Complaint, model: str
) -> None:
    said = complaint("evaluate", model, ingredients / "recipe.toml")
    assert said.startswith(f"{model}: there is no model folder here")


def test_a_plot_of_a_folder_without_a_run(tmp_path: Path, complaint: Complaint) -> None:
    pytest.importorskip("matplotlib")
    said = complaint("plot", tmp_path / "missing", "--out", tmp_path / "plots")
    assert said == f"{tmp_path / 'missing'}: there is no run here; name the folder of a run."
    assert list(tmp_path.iterdir()) == []


def test_a_plot_of_a_run_whose_loss_was_not_measured(
    ingredients: Path, tmp_path: Path, complaint: Complaint
) -> None:
    pytest.importorskip("matplotlib")
    changes = {"evaluation": {"metrics": ["exact_match"]}, "federation": {"rounds": 1}}
    run.start(recipe(ingredients, **changes), tmp_path / "run")
    said = complaint("plot", tmp_path / "run", "--out", tmp_path / "plots")
    assert said.startswith(f"{tmp_path / 'run'}: the run's loss was not measured")
    assert not (tmp_path / "plots").exists()


def test_data_are_read_before_a_model_is_loaded(
    ingredients: Path, tmp_path: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded in vain")

    monkeypatch.setattr(assembly, "load_model", loaded)
    arguments = ["--set", "data.train=/nowhere.jsonl", "--out", tmp_path / "r"]
    assert "/nowhere.jsonl does not exist" in complaint(
        "run", ingredients / "recipe.toml", *arguments
    )
    lines = (ingredients / "train.jsonl").read_text().splitlines()
    lines[20] = json.dumps({"instruction": "x", "category": "red"})
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    arguments[1] = f"data.train={tmp_path / 'train.jsonl'}"
    said = complaint("run", ingredients / "recipe.toml", *arguments)
    lacks = "line 21: the record lacks 'output', which the Alpaca records before it have"
    assert said.startswith(f"{tmp_path / 'train.jsonl'}, {lacks}; add it")


def test_a_comparison_of_no_methods(
    ingredients: Path, tmp_path: Path, complaint: Complaint
) -> None:
    said = complaint(
        "compare", ingredients / "recipe.toml", "--methods", ",", "--out", tmp_path / "c"
    )
    assert said.startswith("methods: no method is named; choose among fedavg, ")
    assert list(tmp_path.iterdir()) == []


def test_a_verification_that_fails(finished: Path, tmp_path: Path, complaint: Complaint) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    log = bytearray((copied / "updates.log").read_bytes())
    log[-1] ^= 1
    (copied / "updates.log").write_bytes(log)
    assert "1 records were written and 0 are whole" in complaint("verify", copied)
