"""The Flower engine: plans and reports over a network, by Flower's SuperLink and SuperNodes.

The ClientApp is a thin relay to a resident worker (in deployment), because Flower starts a
process for every message and a language model takes long to load.
"""
