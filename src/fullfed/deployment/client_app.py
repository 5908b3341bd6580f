"""The ClientApp: hands an order to the node's resident worker and brings its answer back.

Flower starts a process for every message, so nothing heavy is imported here, torch least of all.
In Flower's simulation there is no worker: its processes stay, and are the worker themselves.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fullfed.deployment.run_files import RUN
from fullfed.engines.flower.channel import WORKER, ChannelError, ask
from fullfed.engines.flower.records import content_of, pieces_of

_PAUSE = 0.5  # seconds


def train(message: Message, context: Context) -> Message:
    """Carry out the order. Only the node itself can say that it has a worker, or has none."""
    if WORKER in context.node_config:
        return relay(message, Path(str(context.node_config[WORKER])))
    from fullfed.deployment.simulated import node

    answer = node(Path(str(context.run_config[RUN]))).handle(pieces_of(message.content))
    return Message(content_of(answer), reply_to=message)


def relay(message: Message, address: Path) -> Message:
    """Ask the worker; while it is not there (it is restarted where it died), ask again."""
    pieces = pieces_of(message.content)
    expires = message.metadata.created_at + message.metadata.ttl
    while True:
        try:
            return Message(content_of(ask(address, pieces)), reply_to=message)
        except ChannelError:
            if time.time() > expires:
                raise
            time.sleep(_PAUSE)


app = ClientApp()
app.train()(train)
