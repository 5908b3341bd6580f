"""Codecs: how a client's change becomes bytes, and the server's aggregate an update."""
