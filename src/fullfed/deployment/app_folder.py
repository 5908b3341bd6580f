"""The Flower app: it names what is installed, and brings no code of its own."""

from __future__ import annotations

from pathlib import Path

from fullfed.files import write_atomically

_APP = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fullfed-app"
version = "1.0.0"
description = "fullfed on Flower: the app is the installed fullfed"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fullfed"

[tool.flwr.app.components]
serverapp = "fullfed_app.server:app"
clientapp = "fullfed_app.client:app"

[tool.flwr.app.config]
run = ""
"""


def write_app(folder: Path) -> None:
    """Write the app into a new folder."""
    package = folder / "fullfed_app"
    package.mkdir(parents=True)
    write_atomically(folder / "pyproject.toml", _APP.encode())
    write_atomically(package / "__init__.py", b"")
    for side in ("server", "client"):
        # An assignment, because Flower looks for one without importing the module.
        code = f"from fullfed.deployment import {side}_app\n\napp = {side}_app.app\n"
        write_atomically(package / f"{side}.py", code.encode())
