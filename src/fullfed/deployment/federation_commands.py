"""The commands that make a federation, change its partners and keys, and show its audit file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fullfed.deployment.commands import FederationDirectory, check_installed, say
from fullfed.errors import UserError

if TYPE_CHECKING:
    from fullfed.deployment.folders import ServerFolder

federation = typer.Typer(help="Make a federation's folder, change its partners and keys.")
keys = typer.Typer(help="Give a partner's node, the server or the authority a new key.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    federation.add_typer(keys, name="keys", no_args_is_help=True)
    app.add_typer(federation, name="federation", no_args_is_help=True)


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
    from fullfed.deployment.folders import ServerFolder

    folder = ServerFolder.create(directory, partner, address, port, listen, model)
    say(f"{folder.path}: stays here; next: fullfed serve {directory}")
    for name in partner:
        say(f"{directory / 'partners' / name}: for {name}, who runs: fullfed join {name} --data")


@federation.command()
def add(
    directory: FederationDirectory,
    partner: Annotated[str, typer.Argument(help="The new partner's name.")],
    model: Annotated[
        str | None, typer.Option(help="The base model, as the partner has it.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The public key of a pair that the partner made.")
    ] = None,
) -> None:
    """Take a partner in, from the next run on."""
    check_installed()
    from fullfed.deployment.folders import ServerFolder

    folder = ServerFolder(directory)
    made = folder.add(partner, model, key)
    try:
        _tell_server(folder)
    except UserError as error:
        folder.remove(partner)  # as it was
        raise UserError(
            f"{partner}: the partner is not taken in ({str(error).rstrip('.')}); if its key was "
            "removed before, have the partner make a new one."
        ) from error
    say(f"{made}: for {partner}")


@federation.command()
def remove(
    directory: FederationDirectory,
    partner: Annotated[str, typer.Argument(help="The partner's name.")],
) -> None:
    """Take a partner out, at once: its node is turned away."""
    check_installed()
    from fullfed.deployment.folders import ServerFolder

    folder = ServerFolder(directory)
    folder.remove(partner)
    _tell_server(folder)


@keys.command()
def rotate(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A federation's folder, or a partner's.")
    ],
    authority: Annotated[
        bool, typer.Option("--authority", help="The authority's key as well as the server's.")
    ] = False,
) -> None:
    """Make a new key: the server's at once; a partner's for the operator to admit."""
    check_installed()
    from fullfed.deployment.folders import NodeFolder, ServerFolder
    from fullfed.deployment.rotation import request_key

    node, server = NodeFolder(directory.absolute()), ServerFolder(directory)
    if node.settings_file.exists():
        request, fingerprint = request_key(node)
        say(f"{request}: send this to the server's operator; the new key is {fingerprint}")
        say("the node changes over by itself when the operator has admitted it")
        return
    server.rotate(authority)
    say(f"{server.certificate}: new; stop and start `fullfed serve {directory}`")
    if authority:
        say(f"{server.authority}: new; every partner puts it into its folder")


@keys.command()
def admit(
    directory: FederationDirectory,
    request: Annotated[Path, typer.Argument(help="What the partner has sent.")],
) -> None:
    """Let a partner's new key in, and the old one no longer."""
    check_installed()
    from fullfed.deployment.folders import ServerFolder
    from fullfed.deployment.rotation import admit_key

    folder = ServerFolder(directory)
    partner, fingerprint = admit_key(folder, request)
    _tell_server(folder)
    say(f"{partner}: the key is now {fingerprint}, as the partner should see it, too")


@federation.command()
def audit(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A federation's folder, or a partner's.")
    ],
    file: Annotated[
        Path | None, typer.Option("--file", help="A copy of the audit file, to verify it.")
    ] = None,
    known: Annotated[
        str | None, typer.Option("--known", metavar="HASH", help="Of a line that must be there.")
    ] = None,
) -> None:
    """Verify the audit file, and show who did what when."""
    check_installed()
    from fullfed.deployment.audit import described, read_audit
    from fullfed.deployment.folders import NodeFolder, ServerFolder

    node, server = NodeFolder(directory), ServerFolder(directory)
    authority = node.authority if node.settings_file.exists() else server.authority
    lines = read_audit(file or server.audit_file, authority, known)
    table = Table("time", "who", "act", "about")
    for line in lines:
        table.add_row(line.time, escape(line.who), line.act, escape(described(line.about)))
    Console().print(table)
    say(f"verified, {len(lines)} lines; the last one's hash is {lines[-1].digest}")


def _tell_server(folder: ServerFolder) -> None:
    """Register and unregister at the running server; one that does not run does it at its start."""
    from fullfed.deployment import server
    from fullfed.deployment.processes import check_server

    if check_server(folder.local_address, folder.authority):
        server.sync_nodes(folder, say)
