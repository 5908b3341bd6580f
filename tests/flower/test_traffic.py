"""What passes the server's socket is what the accounts say, and a little more."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flower.real import Federation, write_recipe

MESSAGE = 24 << 10  # bytes that a visit may cost beyond its pieces, each way
NODE_SECOND = 2 << 10  # bytes a second that a node may cost by asking for messages, each way


def test_the_socket_sees_what_the_accounts_say(federation: Federation, tmp_path: Path) -> None:
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "fedavg"},
        federation={"rounds": 2, "clients_per_round": 3},
    )
    before, began = (federation.proxy.up, federation.proxy.down), time.monotonic()
    started = federation.start(recipe, tmp_path / "run")
    assert started.code() == 0, started.said()
    seconds = time.monotonic() - began
    measured = {
        "up": federation.proxy.up - before[0],
        "down": federation.proxy.down - before[1],
    }
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    visits = sum(len(record["cohort"]) for record in records)
    constant = visits * MESSAGE + 4 * seconds * NODE_SECOND
    for way, passed in measured.items():
        accounted = sum(record["bytes"][way] for record in records)
        print(f"{way}: {accounted} accounted, {passed} passed, {visits} visits, {seconds:.0f} s")
        assert accounted <= passed <= 1.05 * accounted + constant
