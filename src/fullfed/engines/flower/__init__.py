"""The Flower engine: plans and reports over a network, by Flower's SuperLink and SuperNodes.

Its ServerApp and ClientApp are in ``fullfed.deployment``.
"""
