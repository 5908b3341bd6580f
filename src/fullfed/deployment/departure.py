"""Telling the server that a node has died.

Flower's server takes a node whose process was killed for alive for another minute, sends it orders,
and lets no other process in with its key. Flower has no command for this; the call is the one that
a node makes when it ends in peace.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fullfed.deployment.node_folder import NodeFolder


def take_leave(folder: NodeFolder, node: int) -> None:
    """Sign off a node that this folder's key was connected as; if the server is there.

    Args:
        node: Flower's id.
    """
    key = load_ssh_private_key(folder.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signing: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    server, authority = folder.settings().server, str(folder.authority)
    # Without it the server notices by itself, later.
    with (
        suppress(httpx.HTTPError, RuntimeError),
        FleetHttpClient.from_server_address(server, False, authority, signing) as client,
    ):
        client.DeactivateNode(DeactivateNodeRequest(node_id=node))
