"""The ClientApp: hands an order to the node's resident worker and brings its answer back.

Flower starts a process for every message, so nothing heavy is imported here, torch least of all.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fullfed.engines.flower.channel import WORKER, ChannelError, ask
from fullfed.engines.flower.records import content_of, pieces_of

_PAUSE = 0.5  # seconds


def relay(message: Message, context: Context) -> Message:
    """Ask the worker; while it is not there (it is restarted where it died), ask again."""
    address = Path(str(context.node_config[WORKER]))
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
app.train()(relay)
