"""The commands that make a federation's folder and change its partners."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fullfed.deployment.console import check_installed, say

FederationDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A federation's folder.")]

federation = typer.Typer(help="Make a federation's folder and change its partners.")


@federation.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    partner: Annotated[list[str], typer.Option(help="A partner's name; repeatable.")],
    address: Annotated[str, typer.Option(help="What partners reach the server by.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port of the server.")] = 8443,
    listen: Annotated[str, typer.Option(help="The server's interface.")] = "0.0.0.0",
    model: Annotated[str, typer.Option(help="The base model, as partners have it.")] = "builtin",
) -> None:
    """Make a federation: authority, certificate, keys, and a folder for each partner."""
    check_installed()
    from fullfed.deployment.server_folder import ServerFolder

    folder = ServerFolder.create(directory, partner, address, port, listen, model)
    say(f"{folder.path}: stays here; next: fullfed serve {directory}")
    for name in partner:
        say(f"{directory / 'partners' / name}: for {name}, who runs: fullfed join {name} --data")


@federation.command()
def add(
    directory: FederationDirectory,
    partner: Annotated[str, typer.Argument(help="The new partner's name.")],
    model: Annotated[str, typer.Option(help="The base model, as the partner has it.")] = "builtin",
    key: Annotated[
        Path | None, typer.Option(help="The public key of a pair that the partner made.")
    ] = None,
) -> None:
    """Take a partner in, from the next run on."""
    check_installed()
    from fullfed.deployment.server_folder import ServerFolder

    folder = ServerFolder(directory)
    say(f"{folder.add(partner, model, key)}: for {partner}")
    _tell_server(directory)


@federation.command()
def remove(
    directory: FederationDirectory,
    partner: Annotated[str, typer.Argument(help="The partner's name.")],
) -> None:
    """Take a partner out, at once: its node is turned away."""
    check_installed()
    from fullfed.deployment.server_folder import ServerFolder

    ServerFolder(directory).remove(partner)
    _tell_server(directory)


@federation.command()
def renew(directory: FederationDirectory) -> None:
    """Give the server a new certificate; partners need nothing new."""
    check_installed()
    from fullfed.deployment.server_folder import ServerFolder

    folder = ServerFolder(directory)
    folder.renew_certificate()
    say(f"{folder.certificate}: renewed; stop and start `fullfed serve {directory}`")


def _tell_server(directory: Path) -> None:
    """Register and unregister at the running server; one that does not run does it at its start."""
    from fullfed.deployment import flower
    from fullfed.deployment.server_folder import ServerFolder
    from fullfed.deployment.sockets import check_server

    folder = ServerFolder(directory)
    if check_server(f"127.0.0.1:{folder.settings().port}", folder.authority):
        flower.sync_nodes(folder, say)
