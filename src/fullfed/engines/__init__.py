"""What carries messages between a server and its clients.

``simulation`` does it in one process. ``node`` and the modules that begin like it are what any
network engine needs at a client and in its messages. ``flower`` is the network engine there is.
"""
