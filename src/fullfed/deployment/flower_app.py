"""The two components of the Flower app: its ServerApp, and the ClientApp of Flower's simulation.

A partner's node runs no ClientApp, fullfed's neither: see fullfed.deployment.relay. Nothing heavy
is imported here, because Flower looks into an app before it runs it.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fullfed.deployment import RUN
from fullfed.engines.flower_messages import content_of, frames_of


def lead(grid: Grid, context: Context) -> None:
    """Carry the run in the folder on to its end."""
    from fullfed.deployment.flower_runs import carry_on

    carry_on(grid, Path(str(context.run_config[RUN])))


def train(message: Message, context: Context) -> Message:
    """Carry out the order of a simulated node, in this process."""
    from fullfed.deployment.node_task import simulated_node

    node = simulated_node(Path(str(context.run_config[RUN])))
    return Message(content_of(node.handle(frames_of(message.content))), reply_to=message)


server = ServerApp()
server.main()(lead)
client = ClientApp()
client.train()(train)
