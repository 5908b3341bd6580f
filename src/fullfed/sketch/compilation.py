"""When kernels are compiled, which takes as long as nobody expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event

_COMPILE = "numba:compile"  # an event of numba's, where a kernel is not in its cache on the disk


class _First(event.Listener):
    """Calls a function when the first kernel is compiled."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: object) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()

    def on_end(self, event: object) -> None:
        pass


@contextmanager
def compilation(tell: Callable[[], None]) -> Iterator[None]:
    """Inside, ``tell`` is called before the first kernel is compiled, if one has to be."""
    with event.install_listener(_COMPILE, _First(tell)):
        yield
