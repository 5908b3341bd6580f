"""A worker's stand-in, in a module that a process of its own can import."""

from __future__ import annotations

from collections.abc import Mapping


def answer(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Every name backwards, every frame twice."""
    return {name[::-1]: frame * 2 for name, frame in frames.items()}
