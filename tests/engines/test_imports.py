"""Only the Flower engine, app, link and commands need Flower; what must start fast needs little.

Each import is tried in a process of its own.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fullfed

PACKAGE = Path(fullfed.__file__).parent
NEEDS_FLOWER = {
    "engines/flower.py",
    "engines/flower_messages.py",
    "engines/flower_objects.py",
    "deployment/flower_app.py",
    "deployment/flower_internals.py",
    "deployment/flower_runs.py",
    "deployment/relay.py",
}


def imported_with(modules: str, package: str) -> bool:
    """Whether importing the modules imports the package."""
    code = f"import sys, {modules}; sys.exit({package!r} in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0


def imports_flower(file: Path) -> bool:
    """Whether flwr is among the names that a file imports, be it inside of a function."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return any(name.split(".")[0] == "flwr" for name in names)


def test_no_other_module_imports_flower() -> None:
    files = {f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*.py") if imports_flower(f)}
    assert files == NEEDS_FLOWER


def test_nodes_and_the_simulation_do_without_flower() -> None:
    engines = sorted((PACKAGE / "engines").glob("*.py"))
    names = [file.stem for file in engines if file.stem[0] != "_" and "flower" not in file.stem]
    assert names == [
        *("node", "node_channel", "node_drift", "node_limits", "node_messages", "node_state"),
        "node_team",
        *("parallel", "simulation", "under_way", "worker_messages"),
    ]
    assert not imported_with(", ".join(f"fullfed.engines.{name}" for name in names), "flwr")


def test_a_nodes_link_does_without_torch() -> None:
    """It runs beside the worker, which needs the memory."""
    assert not imported_with("fullfed.deployment.relay", "torch")


def test_the_commands_that_only_watch_processes_do_without_torch() -> None:
    assert not imported_with("fullfed.deployment.server, fullfed.deployment.node", "torch")
