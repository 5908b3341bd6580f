"""Starts the processes that Flower's server has to be run: those of runs.

``python -m fullfed.deployment.executor ADDRESS KEYFILE [AUTHORITY]``. This takes the place of
flower-superexec, which shows a run's token to everybody on the machine, in the list of processes:
who has it can send orders in the run's name. Here it is in a file, beside the key.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from fullfed.deployment.flower_internals import LostConnectionError, Tasks
from fullfed.files import write_atomically

_PAUSE = 1.0  # seconds between two looks for a task

_TOKEN = "token-"  # begins the name of the file of a run's token


def main() -> None:
    """Start what there is to start, until stopped."""
    address, key_file, *authority = sys.argv[1:]
    key, certificates = Path(key_file), Path(authority[0]) if authority else None
    tasks = Tasks(address, certificates, key.read_bytes())
    trust = ("--root-certificates", authority[0]) if authority else ("--insecure",)
    for left in key.parent.glob(f"{_TOKEN}*"):
        left.unlink()
    children: list[tuple[subprocess.Popen[bytes], Path]] = []
    while True:
        time.sleep(_PAUSE)
        for child, file in children:
            if child.poll() is not None:
                file.unlink(missing_ok=True)
        children = [(child, file) for child, file in children if child.returncode is None]
        try:
            task = tasks.next()
        except LostConnectionError as error:
            print(f"Flower's server does not answer ({error})", flush=True)
            continue
        if task is not None:
            program, token = task
            file = key.with_name(f"{_TOKEN}{secrets.token_hex(8)}")
            write_atomically(file, token.encode(), mode=0o600)
            command = [program, "--runtime-api-address", address, "--token-file", str(file), *trust]
            child = subprocess.Popen([*command, "--parent-pid", str(os.getpid())])
            children.append((child, file))


if __name__ == "__main__":
    main()
