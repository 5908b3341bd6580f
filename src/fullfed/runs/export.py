"""A run's model as a folder that transformers loads, and on the hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError

from fullfed.data.wording import with_template
from fullfed.errors import UserError
from fullfed.runs.assembly import scope_of
from fullfed.runs.folder import RunFolder
from fullfed.runs.model_card import model_card
from fullfed.runs.replay import replay


def export(
    folder: RunFolder, target: Path, title: str | None = None, version: int | None = None
) -> None:
    """Write the run's newest model, its tokenizer and a model card where ``from_pretrained`` loads
    them.

    The tokenizer has the chat template that the run trained on. A trained adapter is merged into
    the model, and saved by itself in ``target / "adapter"`` where ``PeftModel.from_pretrained``
    loads it.

    Args:
        title: of the card; the target's name where it is None.
        version: the model after so many rounds instead.

    Raises:
        UserError: the target has something in it, or the run cannot be replayed.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: there is something here already; name a new folder.")
    recipe = folder.recipe()
    scope = scope_of(recipe)
    model, tokenizer = replay(folder, version)
    tokenizer = with_template(tokenizer, recipe.data.template)
    # Written beside its final place and moved there, so that no half of a model is ever found.
    target = target.absolute()
    partial = target.with_name(target.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        scope.detach(model, partial / "adapter")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        card = model_card(folder, title or target.name, model, tokenizer, version)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{target}: the model cannot be written ({reason}); name another folder."
        ) from error


def check_repository(name: str) -> None:
    """
    Raises:
        UserError: this is no name of a repository with its owner.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: this is no name on the hub; name it as OWNER/NAME.")


def push(target: Path, name: str, private: bool) -> str:
    """Upload an exported folder to a repository of the hub, which is made if need be.

    Args:
        name: "OWNER/NAME". private: whether it is for its owner alone.

    Returns:
        Where the model is to be seen.

    Raises:
        UserError: the hub refuses or cannot be reached, or there is a public repository of this
            name and it is to be private.
    """
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise UserError(
                f"{name}: there is a public repository of this name; make it private, or take "
                f"another name. The model is in {target}."
            )
        api.upload_folder(repo_id=name, folder_path=target, commit_message="Add the model")
    except UserError:
        raise
    except Exception as error:  # the library's errors are other classes in each of its versions
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(
            f"{name}: the model cannot be pushed ({reason}); it is whole in {target}, from where "
            f"`hf upload {name} {target}` pushes it."
        ) from error
    return str(url)
