"""What ``import fullfed`` is before anything is used: light, complete, and readable by tools."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

import fullfed
from fullfed import api
from fullfed.deployment import flower_runs

HEAVY = ("torch", "transformers", "numpy", "pydantic", "safetensors", "typer", "rich", "tomli_w")


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import sys, fullfed; print([n for n in {HEAVY} if n in sys.modules])"
    assert printed(code) == "[]\n"
    code = "import sys; n = len(sys.modules); import fullfed; print(len(sys.modules) - n)"
    assert int(printed(code)) < 60, "and little else"


def test_help_tells_a_newcomer_what_to_call() -> None:
    """Every name stands in the module's own words, and help shows each with its docstring."""
    text = printed("import fullfed, pydoc; print(pydoc.plain(pydoc.render_doc(fullfed)))")
    for name in fullfed.__all__:
        assert f"``{name}``" in (fullfed.__doc__ or ""), name
    for name in ("run", "resume", "estimate"):
        assert f"\n    {name}(" in text
    assert "Carry out a recipe into a new folder." in text


def test_editors_and_mypy_see_every_name() -> None:
    tree = ast.parse(Path(fullfed.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = [a.name for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(imported) == sorted(fullfed.__all__)
    assert set(fullfed.__all__) <= set(dir(fullfed))


def test_every_argument_is_typed_and_told_of() -> None:
    for name in fullfed.__all__:
        function = getattr(fullfed, name)
        if not inspect.isfunction(function):
            continue
        hints, told = typing.get_type_hints(function), inspect.getdoc(function) or ""
        for argument in inspect.signature(function).parameters:
            assert argument in hints, f"{name}({argument})"
            register = name.startswith("register_")  # name and entry: the example shows them
            assert register or argument in told.split("Args:")[1], f"{name}({argument})"


def test_a_package_of_the_same_name_takes_no_functions_place() -> None:
    """Importing a submodule sets an attribute of the package."""
    parts = {path.stem for path in Path(fullfed.__file__).parent.iterdir()}
    assert parts & set(fullfed.__all__) == {"sketch"}


def test_a_simulation_in_flower_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/flower/test_simulate.py carries one out, by the command line."""
    pytest.importorskip("ray")
    asked: list[tuple[int, Path]] = []
    monkeypatch.setattr(
        flower_runs, "simulate", lambda recipe, path, say: asked.append((recipe.seed, path))
    )
    recipe = SimpleNamespace(seed=3)
    monkeypatch.setattr(api, "load_recipe", lambda source, overrides: recipe)
    run = fullfed.simulate("first.toml", tmp_path / "out")
    assert asked == [(3, tmp_path / "out")]
    assert run.folder == tmp_path / "out"
