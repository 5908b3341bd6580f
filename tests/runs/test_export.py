"""What is written beside the exported weights, and what goes to the hub."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

import fullfed
from data.chat_templates import CHATML, KINDS, make_tokenizer
from fullfed.cli import app
from fullfed.errors import UserError
from fullfed.runs import export as exports
from fullfed.runs import run
from fullfed.runs.conversation import conversations
from fullfed.runs.folder import RunFolder
from fullfed.units import bytes_text
from runs.small import CATEGORIES, recipe


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fullfed.export(finished, tmp_path_factory.mktemp("exported") / "four-colours")


def test_the_card_s_facts_are_for_the_hub(exported: Path) -> None:
    facts = ModelCard.load(exported / "README.md").data
    assert facts.to_dict() == {
        "library_name": "transformers",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["fullfed", "federated-learning", "ferret"],
    }


def test_the_card_says_what_the_run_s_files_say(exported: Path, finished: Path) -> None:
    card = ModelCard.load(exported / "README.md").text
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    base = json.loads((finished / "base.json").read_text())
    parameters = AutoModelForCausalLM.from_pretrained(exported).num_parameters()
    assert card.strip().startswith("# four-colours\n")
    assert f"A LlamaForCausalLM ({parameters:,} parameters), after 4 rounds" in card
    assert f"| loss, nats per token | {base['loss']:.4f} | {lines[-1]['loss']:.4f} |" in card
    for way, heading in (("up", "from clients"), ("down", "to clients")):
        total = bytes_text(sum(line["bytes"][way] for line in lines))
        assert f"| bytes {heading} | {total} |" in card
    assert "4 clients held 32 samples, 8 each." in card
    assert f"`{lines[-1]['model_hash']}`" in card
    assert "| a visit | 2 steps with batches of 2 |" in card
    for heading in ("Use", "Training", "Data", "Results", "Privacy", "Licence", "Reproduction"):
        assert f"\n## {heading}\n" in card
    assert "the licence of its base" in card
    assert "### Instruction:\n...\n" in card, "the words of the prompts that were trained"


def test_a_run_without_a_round_has_no_model_to_show(ingredients: Path, tmp_path: Path) -> None:
    class Stop(run.Callback):
        def on_round_begin(self, round: int) -> None:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run.start(recipe(ingredients), out, [Stop()])
    said = f"{out}: no round of the run is over yet; resume it first."
    with pytest.raises(UserError) as raised:
        fullfed.export(out, tmp_path / "model")
    assert str(raised.value) == said
    with pytest.raises(UserError) as raised:
        conversations(str(out))
    assert str(raised.value) == said
    assert not (tmp_path / "model").exists()


def test_no_file_names_a_path_or_a_client(
    exported: Path, finished: Path, ingredients: Path
) -> None:
    for file in exported.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert str(ingredients).encode() not in data, file
        assert str(finished.parent).encode() not in data, file
        assert str(Path.home()).encode() + b"/" not in data, file
    card = (exported / "README.md").read_text()
    assert not re.search(rf"\b({'|'.join(CATEGORIES)})\b", card.replace("four-colours", ""))


def test_an_adapter_names_no_path_either(ingredients: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    one = recipe(ingredients, method={"name": "fedit"}, federation={"rounds": 1})
    run.start(one, tmp_path / "run")
    fullfed.export(tmp_path / "run", tmp_path / "model")
    assert (tmp_path / "model" / "adapter" / "adapter_config.json").exists()
    for file in (tmp_path / "model").rglob("*"):
        assert file.is_dir() or str(ingredients).encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Base\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: its-own\nlicense_link: LICENSE\n---\n", "other"),
        ("# No facts\n", "unknown"),
        ("---\nlicense: [a, b]\n---\n", "unknown"),
        ("---\nlicense: 'never closed\n---\n", "unknown"),
        ("---\n- a list\n---\n", "unknown"),
    ],
)
def test_the_licence_is_the_base_s(
    readme: str, expected: str, copied: Path, ingredients: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (ingredients / "model").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "README.md").write_text(readme)
    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(text.replace(str(ingredients / "model"), str(base)))
    card = ModelCard.load(fullfed.export(copied, tmp_path / "model") / "README.md")
    assert card.data.license == expected
    if expected == "other":
        assert (card.data.license_name, card.data.license_link) == ("its-own", "LICENSE")


@pytest.mark.parametrize(
    ("template", "expected"),
    [("auto", KINDS["Qwen 2"].template), ("alpaca", None), (CHATML, CHATML)],
)
def test_the_tokenizer_has_the_template_that_was_trained(
    template: str,
    expected: str | None,
    ingredients: Path,
    tmp_path: Path,
    tiny_llama: LlamaForCausalLM,
) -> None:
    tokenizer = make_tokenizer(KINDS["Qwen 2"])
    tiny_llama.resize_token_embeddings(len(tokenizer))
    tiny_llama.config.max_position_embeddings = 512
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    one = recipe(
        ingredients,
        model={"path": str(tmp_path / "base")},
        data={"template": template},
        federation={"rounds": 1},
    )
    run.start(one, tmp_path / "run")
    fullfed.export(tmp_path / "run", tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == expected
    card = (tmp_path / "model" / "README.md").read_text()
    assert ("chat template is the one" in card) == (expected is not None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """Stands for the hub; its methods take what HfApi's take."""
    api = create_autospec(HfApi, instance=True)
    api.create_repo.return_value = "https://hub/me/colours"
    api.repo_info.return_value = SimpleNamespace(private=True)
    monkeypatch.setattr(exports, "HfApi", lambda: api)
    return api


@pytest.mark.parametrize("private", [False, True])
def test_pushing_uploads_the_folder(
    private: bool, hub: HfApi, finished: Path, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    command = ["export", str(finished), str(target), "--push", "me/colours"]
    result = CliRunner().invoke(app, [*command, "--private"] if private else command)
    assert result.exit_code == 0, result.output
    assert "me/colours: pushed to the hub" in result.output
    hub.create_repo.assert_called_once_with("me/colours", private=private, exist_ok=True)
    uploaded = hub.upload_folder.call_args.kwargs
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/colours", target)
    assert ModelCard.load(target / "README.md").text.strip().startswith("# colours\n")


def test_what_is_to_be_private_does_not_go_to_a_public_repository(
    hub: HfApi, finished: Path, tmp_path: Path
) -> None:
    hub.repo_info.return_value = SimpleNamespace(private=False)
    with pytest.raises(UserError, match="me/colours: there is a public repository of this name"):
        fullfed.export(finished, tmp_path / "model", "me/colours", private=True)
    hub.upload_folder.assert_not_called()
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["colours", "me/", "/tmp/model", "a/b/c", ""])
def test_what_is_no_repository_is_refused_before_anything_is_written(
    name: str, hub: HfApi, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="name it as OWNER/NAME"):
        fullfed.export(finished, tmp_path / "model", name)
    assert not (tmp_path / "model").exists()
    hub.create_repo.assert_not_called()


def test_private_without_a_repository_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say with push where"):
        fullfed.export(finished, tmp_path / "model", private=True)
    assert not (tmp_path / "model").exists()


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub that lets nobody in."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"error": "Invalid credentials"}'
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_that_refuses_is_told_in_one_sentence(
    refusing: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "HfApi", lambda: HfApi(endpoint=refusing, token="none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"me/colours: the model cannot be pushed \(.*401.*\)"):
        fullfed.export(finished, tmp_path / "model", "me/colours")
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_hub_that_is_not_there_is_told_in_one_sentence(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(exports, "HfApi", lambda: HfApi(endpoint=nowhere, token="none"))
    with pytest.raises(
        UserError, match=r"me/colours: the model cannot be pushed \(.+\); it is whole"
    ):
        exports.push(RunFolder(finished).path, "me/colours", private=False)
