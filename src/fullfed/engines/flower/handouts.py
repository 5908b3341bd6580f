"""Orders to nodes that hold no replica."""

from __future__ import annotations

from dataclasses import replace

from fullfed.engines.flower.orders import Order
from fullfed.federation.log import Log
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.worker import Worker


class Handouts:
    """What such nodes are sent in the place of updates, as the method has it.

    Args:
        server: the server's own replica.
        log: the run's.
    """

    def __init__(self, server: Worker, log: Log) -> None:
        self._server = server
        self._log = log
        self._merged: dict[int, int] = {}  # the last round with each client's report, ...
        self._seen = 0  # ... as far as the log has been looked through

    def order(self, order: Order, client: int) -> Order | None:
        """The order with a handout, and with equipment beside terms; None for other methods."""
        method, model = self._server.replica.method, self._server.replica.model
        handout = method.handout(model, decode(order.plan, Plan))
        if handout is None:
            return None
        equipment = encode(method.equipment(model)) if order.terms else b""
        merged = self._last_merged(client)
        return replace(order, equipment=equipment, handout=encode(handout), merged=merged)

    def _last_merged(self, client: int) -> int:
        for number in range(self._seen, len(self._log)):
            merged = decode(self._log.read(number), Update).values.get("merged")
            if isinstance(merged, list):
                self._merged |= {c: number for c in merged if isinstance(c, int)}
        self._seen = len(self._log)
        return self._merged.get(client, -1)
