"""The Flower engine: a federation over a network, on Flower's SuperLink and SuperNodes.

The ServerApp runs fullfed's own round loop; the ClientApp is a thin relay to a resident worker,
because Flower starts a process for every message and a language model takes long to load.
"""
