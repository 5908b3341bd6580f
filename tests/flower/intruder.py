"""Somebody who has a federation's certificate and port, perhaps a node's key, and an app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import httpx
import tomli_w
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fullfed.deployment.server import write_app

_SERVER = """\
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

Path({told!r}).with_suffix(".server").touch()
app = ServerApp()


@app.main()
def main(grid, context):
    content = RecordDict({{"anything": ConfigRecord({{"a": 1}})}})
    nodes = list(grid.get_node_ids())
    replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
    told = [str(reply.error) if reply.has_error() else "carried out" for reply in replies]
    Path({told!r}).write_text("\\n".join(told))
"""
_CLIENT = """\
from pathlib import Path

from flwr.clientapp import ClientApp

Path({told!r}).with_suffix(".client").touch()
app = ClientApp()


@app.train()
def train(message, context):
    return message
"""


def write_foreign_app(folder: Path, told: Path) -> Path:
    """An app whose server writes to ``told`` what nodes reply; its sides touch a file beside it."""
    write_app(folder)
    for side, code in (("server", _SERVER), ("client", _CLIENT)):
        (folder / "fullfed_app" / f"{side}.py").write_text(code.format(told=str(told)))
    return folder


def flwr(home: Path, *arguments: object) -> tuple[bool, str]:
    """Whether a command of Flower's succeeds, and what it says."""
    done = subprocess.run(
        [Path(sys.executable).with_name("flwr"), *map(str, arguments), "--format", "json"],
        env={**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    start = done.stdout.find("{")
    succeeded = start >= 0 and json.loads(done.stdout[start:]).get("success") is True
    return succeeded and done.returncode == 0, done.stdout + done.stderr


def write_home(home: Path, address: str, authority: Path) -> Path:
    """A configuration of ``flwr`` for a server, as anybody who has ca.crt can write it."""
    home.mkdir()
    connection = {"address": address, "root-certificates": str(authority)}
    tables = {"superlink": {"default": "theirs", "theirs": connection}}
    (home / "config.toml").write_text(tomli_w.dumps(tables))
    return home


class Caller:
    """Calls any path of a server, as Flower's clients do.

    Args:
        key: of a node, which signs the calls; None for somebody who has none.
    """

    def __init__(self, address: str, authority: Path, key: Path | None = None) -> None:
        signing = []
        if key is not None:
            private = load_ssh_private_key(key.read_bytes(), None)
            signing = [NodeAuthHttpInterceptor(private, private.public_key())]  # type: ignore
        self._client = ProtobufClient.from_server_address(
            address, False, authority.read_bytes(), signing
        )

    def statuses(self, paths: Iterable[str]) -> dict[str, int]:
        """The HTTP status of a call of each path."""
        return {path: self._status(path) for path in paths}

    def _status(self, path: str) -> int:
        try:
            self._client._unary_unary(
                path=path,
                rpc_method="",
                request=PullMessagesRequest(),
                response_type=PullMessagesResponse,
            )
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        except ValueError:
            pass  # an answer of another kind is an answer
        return 200
