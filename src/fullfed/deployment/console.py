"""What the commands say, and what they need installed."""

from __future__ import annotations

from importlib.util import find_spec

from rich.console import Console

from fullfed.errors import UserError


def check_installed(package: str = "flwr", extra: str = "flower") -> None:
    """
    Raises:
        UserError: the package is not.
    """
    if find_spec(package) is None:
        raise UserError(f'this needs {package}; install it: pip install "fullfed[{extra}]".')


def say(text: str) -> None:
    # Flushed, so that a service's log shows it at once.
    console = Console()
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    console.file.flush()
