"""Making a run's model an ordinary checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError

from fullfed.errors import UserError
from fullfed.methods.catalogue import METHODS
from fullfed.runs.assembly import method_options
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay


def export(folder: RunFolder, target: Path) -> None:
    """Write the run's newest model and its tokenizer where ``from_pretrained`` loads them.

    A trained adapter is merged into the model, and saved by itself in ``target / "adapter"``
    where ``PeftModel.from_pretrained`` loads it.

    Raises:
        UserError: the target has something in it, or the run cannot be replayed.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: there is something here already; name a new folder.")
    recipe = folder.recipe()
    scope = METHODS[recipe.method.name].scope(recipe.federation.seed, method_options(recipe.method))
    model, tokenizer = replay(folder)
    # Written beside its final place and moved there, so that no half of a model is ever found.
    target = target.absolute()
    partial = target.with_name(target.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        scope.detach(model, partial / "adapter")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{target}: the model cannot be written ({reason}); name another folder."
        ) from error
