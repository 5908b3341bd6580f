"""A TCP proxy that counts what passes, TLS and all, and behind which the server can go away."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

# What an outage looks like to who is connected, and to who tries to connect.
REFUSED = "refused"  # cut off; nobody listens
CLOSED = "closed"  # cut off; accepted and closed at once
SILENT = "silent"  # cut off; accepted, and no answer ever
HALF_OPEN = "half open"  # as if nothing had happened, and no answer ever
OUTAGES = (REFUSED, CLOSED, SILENT, HALF_OPEN)


class CountingProxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to another.

    Attributes:
        port: the free port.
        up: bytes that clients have sent.
        down: bytes that they were sent.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._outage = ""
        self._open: set[socket.socket] = set()
        self.port = int(self._listener.getsockname()[1])
        self.up = self.down = 0
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        _close(self._listener)

    def begin(self, outage: str) -> None:
        """Have the server go away."""
        self._outage = outage
        if outage == REFUSED:
            self.close()
        if outage != HALF_OPEN:
            self._cut()

    def end(self) -> None:
        """Have it come back. What was connected meanwhile never hears of it."""
        if self._outage == REFUSED:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._outage = ""

    def _cut(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            _close(end)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self._outage == CLOSED:
                    client.close()
                    continue
                with self._lock:
                    self._open.add(client)
                if self._outage:
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._open.add(server)
                for ends in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self._outage:
                    return  # neither is told
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(data))
                target.sendall(data)
        for end in (source, target):
            with self._lock:
                self._open.discard(end)
            _close(end)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
