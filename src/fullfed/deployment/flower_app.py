"""The two components of the Flower app: its ServerApp and its ClientApp.

Flower starts a process for every message to a node, so nothing heavy is imported here, torch least
of all.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fullfed.deployment import RUN, WORKER
from fullfed.engines.flower_messages import content_of, frames_of
from fullfed.engines.node_messages import ChannelError, ask

_PAUSE = 0.5  # seconds


def lead(grid: Grid, context: Context) -> None:
    """Carry the run in the folder on to its end."""
    from fullfed.deployment.flower_runs import carry_on

    carry_on(grid, Path(str(context.run_config[RUN])))


def train(message: Message, context: Context) -> Message:
    """Carry out the order: at a node by its worker, in Flower's simulation in this process.

    Only the node itself can say that it has a worker, or has none.
    """
    if WORKER in context.node_config:
        return relay(message, Path(str(context.node_config[WORKER])))
    from fullfed.deployment.flower_runs import simulated_node

    node = simulated_node(Path(str(context.run_config[RUN])))
    return Message(content_of(node.handle(frames_of(message.content))), reply_to=message)


def relay(message: Message, address: Path) -> Message:
    """Ask the worker; while it is not there (it is restarted where it died), ask again."""
    frames = frames_of(message.content)
    expires = message.metadata.created_at + message.metadata.ttl
    while True:
        try:
            return Message(content_of(ask(address, frames)), reply_to=message)
        except ChannelError:
            if time.time() > expires:
                raise
            time.sleep(_PAUSE)


server = ServerApp()
server.main()(lead)
client = ClientApp()
client.train()(train)
