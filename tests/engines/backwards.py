"""A worker's stand-in, in a module that a process of its own can import."""

from __future__ import annotations

from collections.abc import Mapping

TOO_LONG = 64 << 20


class Backwards:
    def refuse(self, nbytes: int) -> Mapping[str, bytes] | None:
        return {"refused": str(nbytes).encode()} if nbytes > TOO_LONG else None

    def handle(self, frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Every name backwards, every frame twice."""
        return {name[::-1]: frame * 2 for name, frame in frames.items()}
