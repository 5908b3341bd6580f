"""All that fullfed uses of Flower beyond what Flower promises to keep.

Flower moves nearly weekly. Whatever may break with its next version is here, and
tests/flower/test_versions.py says which part did. Messages' objects are in
fullfed.engines.flower_objects. The rest of fullfed uses Flower's commands, and
its messages and apps (flwr.app, flwr.clientapp, flwr.serverapp).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import SQLITE_PRAGMAS, TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fullfed.engines.flower_objects import LongMessageError, pull, push
from fullfed.errors import UserError

_TURNED_AWAY = (
    ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED,
    ApiErrorCode.FLEET_NODE_DEACTIVATION_FAILED,
)
_NOBODYS = 401  # a call that is signed by no registered key, or at another time than now
_REFUSALS = {429: ": this node asks for more than the server's operator allows in a minute"}
_TEXT_LIMIT = 300  # characters of an error's text
# Of SQLite. Large messages that are put there or deleted keep it busy for longer than Flower's five
# seconds, and a call that gives up ends the run. Each connection has a cache; Flower's, of 64 MB.
# Where SQLite was built to overwrite what is deleted, that of a model of 4 GB took half a minute,
# in which no heartbeat was heard; FAST overwrites only what it writes anyway. Large pages are
# faster, and have to be asked for before there is a database.
_FIRST_PRAGMAS = {"page_size": "32768"}  # bytes
_PRAGMAS = {"busy_timeout": "120000", "cache_size": "-8000", "secure_delete": "FAST"}  # ms; kB
_MOST_OBJECTS = 1 << 17  # of an order, which has a frame for each update that the node lacks
HEARTBEAT_SECONDS = 15.0  # Flower's server takes a node for gone twice as long after its last one


class LostConnectionError(Exception):
    """The server did not answer a node's call, or not as Flower's does; says how."""


class TurnedAwayError(Exception):
    """The server lets the node's key in neither now nor later, or another node runs with it."""


class EndedRunError(Exception):
    """The run that a message belongs to is over."""


class TooLongError(Exception):
    """A message is longer than the node allows.

    Attributes:
        message: it, without its content.
    """

    def __init__(self, message: Message) -> None:
        super().__init__()
        self.message = message


class Fleet:
    """A node's calls to the server: what flower-supernode does, without fetching or running apps.

    Every call may raise LostConnectionError, and TurnedAwayError where the server does not know the
    key.

    Args:
        server: host:port.
        authority: the file of the certificate authority that has signed the server's certificate.
        key: the file of the node's private key.
    """

    def __init__(self, server: str, authority: Path, key: Path) -> None:
        private = load_ssh_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self._public_key = public_key_to_bytes(private.public_key())
        signing: list[Any] = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ]
        certificates = authority.read_bytes()
        self._client = FleetHttpClient.from_server_address(server, False, certificates, signing)
        self._node = Node()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def connect(self) -> int:
        """Tell the server that the node is there; return Flower's number for it.

        Raises:
            TurnedAwayError: the key is not registered, or in use.
        """
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_SECONDS
        )
        with _told_apart():
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        return int(self._node.node_id)

    def leave(self, node: int) -> None:
        """Tell the server that a node with this key is gone, which it knows or would notice."""
        with suppress(TurnedAwayError), _told_apart():
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=node))

    def beat(self) -> None:
        """Tell the server that the node is still there."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
        with _told_apart():
            self._client.SendNodeHeartbeat(request)

    def receive(self, most_bytes: int) -> Message | None:
        """The next message for the node, if there is one.

        Raises:
            EndedRunError: it is of a run that is over.
            TooLongError: it has more than ``most_bytes``, of which no more have been fetched.
        """
        with _told_apart():
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            head: Message = message_from_proto(response.messages_list[0])
            run, tree = head.metadata.run_id, response.message_object_trees[0]
            head.metadata.__dict__["_message_id"] = tree.object_id
            pull_object = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
            fetched = 0

            def pull_counted(object_id: str) -> bytes:
                nonlocal fetched
                content: bytes = pull_object(object_id)
                fetched += len(content)
                if fetched > most_bytes:
                    raise TooLongError(head)
                return content

            try:
                message = pull(tree.object_id, pull_counted, most_bytes, _MOST_OBJECTS)
            except LongMessageError as error:
                raise TooLongError(head) from error
            confirm = make_confirm_message_received_fn_protobuf(
                self._client.ConfirmMessageReceived, self._node, run
            )
            confirm(tree.object_id)
            return message

    def reply(self, message: Message, seconds: float) -> None:
        """Send the reply to a message, which took so many seconds.

        Raises:
            EndedRunError: the run is over.
        """
        message.metadata.__dict__["_message_id"] = message.object_id
        with _told_apart(), no_object_id_recompute():
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(message))],
                    message_object_trees=[get_object_tree(message)],
                    clientapp_runtime_list=[seconds],
                )
            )
            run, session = message.metadata.run_id, response.session_id
            push_object = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, run, session
            )
            push(message, push_object, set(response.objects_to_push))


@contextmanager
def _told_apart() -> Iterator[None]:
    """What may go wrong in a call, by what is to be done about it."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        code = None if told is None else told.code
        if code in _TURNED_AWAY or error.response.status_code == _NOBODYS:
            raise TurnedAwayError from error
        if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            raise EndedRunError from error
        said = _REFUSALS.get(error.response.status_code, "")
        raise LostConnectionError(f"it answers {error.response.status_code}{said}") from error
    except (httpx.HTTPError, ValueError, ObjectPullError, ObjectPushError, UserError) as error:
        raise LostConnectionError(_printable(error)) from error


def _printable(error: Exception) -> str:
    """What an error says, of which the server may have written a part, for the partner to read."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(text.split())[:_TEXT_LIMIT] or type(error).__name__


def registered_nodes(address: str, authority: Path, key: str) -> dict[str, tuple[str, str]]:
    """The nodes that the server at host:port knows, by their keys (PEM).

    Each with its state (Flower's word) and the moment, in ISO 8601, at which it came or went.

    Args:
        key: the operator's.

    Raises:
        LostConnectionError: the server does not answer.
    """
    bearing: list[Any] = [RuntimeVersionHttpInterceptor(component_name="flwr CLI"), _Bearer(key)]
    certificates = authority.read_bytes()
    client = ControlHttpClient.from_server_address(address, False, certificates, bearing)
    try:
        with _told_apart():
            listed = client.ListNodes(ListNodesRequest()).nodes_info
    finally:
        client.close()
    return {
        str(node.public_key, "ascii"): (
            node.status,
            node.last_activated_at if node.status == "online" else node.last_deactivated_at,
        )
        for node in listed
    }


class _Bearer:
    """Puts the operator's key on each request."""

    def __init__(self, key: str) -> None:
        self._key = key

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        context.request.headers["Authorization"] = f"Bearer {self._key}"
        answer: httpx.Response = call_next(context)
        return answer


class Tasks:
    """What Flower's server has to be run.

    Args:
        address: host:port.
        authority: whose certificate the server has; None for one without TLS.
        key: the operator's.
    """

    def __init__(self, address: str, authority: Path | None, key: bytes) -> None:
        signing: list[Any] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=key, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
            ),
        ]
        certificates = None if authority is None else authority.read_bytes()
        self._client = RuntimeHttpClient.from_server_address(
            address, authority is None, certificates, signing
        )

    def next(self) -> tuple[str, str] | None:
        """The program to run, and the token to give it; None if there is nothing to run.

        Raises:
            LostConnectionError: the server does not answer.
        """
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP, TaskType.SIMULATION])
        with _told_apart():
            given = self._client.AcquireTask(wanted)
        if not given.token:
            return None
        return TASK_TYPE_TO_COMMAND[TaskType(given.task.type)], str(given.token)


def store_key(home: Path, address: str, key: str) -> None:
    """Have Flower's own command, ``flwr``, bear the operator's key.

    Args:
        home: the folder of Flower's configuration.
        address: what the command calls the server by.
    """
    from flwr.cli.constant import (
        ACCESS_TOKEN_STORE_KEY,
        AUTHN_TYPE_STORE_KEY,
        REFRESH_TOKEN_STORE_KEY,
    )
    from flwr.common.constant import AuthnType
    from flwr.supercore.credential_store.file_credential_store import FileCredentialStore

    file = home / "credentials.yaml"
    file.unlink(missing_ok=True)  # of addresses that nobody listens at any more
    store = FileCredentialStore(file)
    store.set(AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
    for name in (ACCESS_TOKEN_STORE_KEY, REFRESH_TOKEN_STORE_KEY):
        store.set(name % address, key.encode())


@dataclass(frozen=True)
class SuperLinkParts:
    """Flower's server, before it listens.

    Attributes:
        application: its ASGI application.
        port: that it would listen at.
        certificate, key: files; None without TLS.
        log_config: as uvicorn takes it.
    """

    application: Any
    port: int
    certificate: str | None
    key: str | None
    log_config: dict[str, Any]


def superlink_parts(arguments: Sequence[str]) -> SuperLinkParts:
    """What ``flower-superlink ARGUMENTS...`` would run, with our pragmas of its database."""
    from flwr.supercore import sql_mixin
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.supercore.logger import console_handler
    from flwr.superlink.cli.flower_superlink import (
        SuperLinkLifespan,
        _parse_superlink_lifespan_config,
    )
    from flwr.superlink.main import create_app

    pragmas = {**_FIRST_PRAGMAS, **dict(SQLITE_PRAGMAS), **_PRAGMAS}
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple(pragmas.items())
    sys.argv = ["flower-superlink", *arguments]
    config = _parse_superlink_lifespan_config()
    return SuperLinkParts(
        create_app(config, SuperLinkLifespan),
        config.port,
        config.ssl_certfile,
        config.ssl_keyfile,
        get_uvicorn_log_config(console_handler.level),
    )
