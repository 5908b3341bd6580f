"""Flower's messages, a few pieces at a time: what is pulled goes to a payload, and comes from one.

Flower cuts a message into objects, and its arrays into chunks of some MiB. Its own functions hold
all of a message's chunks in memory, twice for a moment; these hold a few. They use what Flower does
not promise to keep, as fullfed.deployment.flower_internals does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError as ObjectPullError
from flwr.supercore.inflatable.inflatable_utils import (
    inflatable_class_registry,
    pull_objects,
    push_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fullfed.payloads import joined

_AT_ONCE = 4  # objects that are in memory
_DEEPEST = 2  # a message holds a dictionary of records, which holds them
_CHUNK = 1 << 20  # bytes; Flower's own chunks are longer


class LongMessageError(Exception):
    """A message says that it is longer than it may be."""


def pull(
    message_id: str, pull_object: Callable[[str], bytes], most_bytes: int, most_objects: int
) -> Message:
    """A message, its arrays' data as payloads.

    Args:
        pull_object: the content of an object by its id, as Flower's servers hold it.
        most_bytes: that its arrays may have. Chunks may repeat, so that they can have far more than
            was ever sent.
        most_objects: that it may be, chunks apart.

    Raises:
        LongMessageError: they say that they have more, of which no more have been fetched.
        ValueError: the objects are no message's.
        ObjectPullError: one is missing.
        UserError: there is no room for the message.
    """
    try:
        message = _Pull(pull_object, most_bytes, most_objects).object(message_id, _DEEPEST)
    except (LookupError, TypeError, AttributeError, RecursionError, DecodeError) as error:
        raise ValueError("this is no message") from error  # Flower itself looks at little
    if not isinstance(message, Message):
        raise ValueError("this is no message")
    message.metadata.__dict__["_message_id"] = message_id
    return message


@dataclass
class _Pull:
    """The pulling of one message.

    Attributes:
        bytes_left: that its arrays may still have.
        objects_left: that it may still be, chunks apart.
    """

    pull_object: Callable[[str], bytes]
    bytes_left: int
    objects_left: int

    def object(self, object_id: str, deepest: int) -> InflatableObject:
        """An object with those that it holds, which may lie so deep in it."""
        (content,) = self._contents([object_id])
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == ArrayRecord.__qualname__:
            return self._record(content)
        if kind not in inflatable_class_registry or (children and not deepest):
            raise ValueError("there is no such object in a message")
        held = {child: self.object(child, deepest - 1) for child in children}
        return inflatable_class_registry[kind].inflate(content, held)

    def _contents(self, ids: Sequence[str]) -> list[bytes]:
        self.objects_left -= len(ids)
        if self.objects_left < 0:
            raise ValueError("a message is of more objects than it may be")
        contents = pull_objects(list(dict.fromkeys(ids)), self.pull_object)
        return [contents[object_id] for object_id in ids]

    def _record(self, content: bytes) -> ArrayRecord:
        """A record of arrays, a few of which are asked for at a time."""
        named = json.loads(get_object_body(content, ArrayRecord))
        if not isinstance(named, dict):
            raise ValueError("there is no such record in a message")
        record = ArrayRecord()
        for names in _few(list(named)):
            heads = self._contents([str(named[name]) for name in names])
            arrays = [self._array(head) for head in heads]
            alone = dict.fromkeys(ids[0] for _, ids in arrays if len(ids) == 1)  # of short ones
            ready = pull_objects(list(alone), self.pull_object) if alone else {}
            for name, (array, ids) in zip(names, arrays, strict=True):
                (nbytes,) = array.shape
                bodies = _bodies(ids, nbytes, ready, self.pull_object)
                array.data = joined(bodies, nbytes)  # type: ignore[assignment]
                record[name] = array
        return record

    def _array(self, head: bytes) -> tuple[Array, list[str]]:
        """An array of bytes, without them, and the ids of the chunks that have them."""
        _, chunks, _ = get_object_head_values_from_object_content(head)
        about = json.loads(get_object_body(head, Array))
        try:
            ids = [chunks[place] for place in about["arraychunk_ids"]]
            nbytes = math.prod(about["shape"])
            array = Array(dtype=about["dtype"], shape=(nbytes,), stype=about["stype"], data=b"")
            self._check(nbytes, len(ids))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError("there is no such array in a message") from error
        return array, ids

    def _check(self, nbytes: int, chunks: int) -> None:
        """Whether an array may have so many bytes, in so many chunks."""
        if nbytes < 0 or chunks > nbytes // _CHUNK + 1:
            raise ValueError("an array has an impossible length, or too many chunks for it")
        self.bytes_left -= nbytes
        if self.bytes_left < 0:
            raise LongMessageError


def _bodies(
    ids: Sequence[str],
    nbytes: int,
    ready: Mapping[str, bytes],
    pull_object: Callable[[str], bytes],
) -> Iterator[bytes]:
    """What chunks hold, in their order.

    Raises:
        ValueError: it is not ``nbytes`` in all.
    """
    for few in _few(ids):
        missing = [object_id for object_id in dict.fromkeys(few) if object_id not in ready]
        contents = {**ready, **pull_objects(missing, pull_object)} if missing else ready
        for object_id in few:
            body = get_object_body(contents[object_id], ArrayChunk)
            nbytes -= len(body)
            if nbytes < 0:
                raise ValueError("an array is longer than it says")
            yield body
    if nbytes:
        raise ValueError("an array is shorter than it says")


def push(message: Message, push_object: Callable[[str, bytes], None], wanted: Set[str]) -> None:
    """Send a message's objects.

    Args:
        push_object: takes an object's id and its content.
        wanted: the ids of the objects that the other side lacks.

    Raises:
        ObjectPushError: the other side does not take one.
    """
    objects = get_all_nested_objects(message)
    for few in _few([name for name in objects if name in wanted]):
        push_objects({name: objects[name] for name in few}, push_object)


def _few(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + _AT_ONCE] for first in range(0, len(ids), _AT_ONCE))


def push_message(grid: Grid, message: Message) -> str:
    """Send a message; return its id, which is empty if Flower does not take it."""
    if not isinstance(grid, HttpGrid):  # of a simulation in this process
        return next(iter(grid.push_messages([message])), "") or ""
    client, run = grid._runtime_client, grid.run.run_id
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        head = message_to_proto(remove_content_from_message(message))
        tree = get_object_tree(message)
        request = PushAppMessagesRequest(messages_list=[head], message_object_trees=[tree])
        answer = client.PushMessages(request)
        push_object = make_push_object_fn_protobuf(
            client.PushObject, grid.node, run, answer.session_id
        )
        push(message, push_object, set(answer.objects_to_push))
    return next(iter(answer.message_ids), "") or ""


def pull_message(grid: Grid, message_id: str, most_bytes: int, most_objects: int) -> Message | None:
    """The reply to a message, once; None as long as there is none.

    Raises:
        LongMessageError, ValueError, ObjectPullError, UserError: as for ``pull``; the reply is
            lost.
    """
    if not isinstance(grid, HttpGrid):
        return next(iter(grid.pull_messages([message_id])), None)
    client, run = grid._runtime_client, grid.run.run_id
    replies = client.PullMessages(PullAppMessagesRequest(message_ids=[message_id])).messages_list
    if not replies:
        return None
    reply = replies[0].metadata.message_id
    pull_object = make_pull_object_fn_protobuf(client.PullObject, grid.node, run)
    message = pull(reply, pull_object, most_bytes, most_objects)
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=grid.node, run_id=run, message_object_id=reply)
    )
    return message
