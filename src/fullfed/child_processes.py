"""Processes that this one starts for work of its own, and that end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("spawn")  # a process's memory is what it needs itself


def start(
    target: Callable[..., None], arguments: tuple[Any, ...], name: str
) -> tuple[Connection, BaseProcess]:
    """Start a process; return our end of a connection to it, and the process.

    Args:
        target: called there with the arguments and the other end; its first call is to be
            ``end_with_parent``.
        arguments: pickled.
        name: of the process.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=target, args=(*arguments, theirs), name=name)
    # A Ctrl-C is for us, who end the processes: they start with it ignored.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        process.start()
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
    return ours, process


def end_with_parent() -> None:
    """Have this process end as soon as the one that started it has, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
