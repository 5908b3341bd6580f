"""Secure sums over Flower: the bytes of a run in one process, whoever's worker dies in whichever
phase, and what node.toml says of them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS
from flower.small import RUN, node_worker
from flower.standin import Dictionary, Node, carry_out, recipe_of
from fullfed.config import Recipe
from fullfed.deployment.folders import NodeFile, NodeFolder
from fullfed.deployment.identities import create_node_key
from fullfed.deployment.owner import owner_of
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Order
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, decode
from fullfed.privacy.identities import new_identity, public_bytes
from fullfed.privacy.keystream import derived
from fullfed.privacy.participant import Trust
from fullfed.privacy.summing import GIVEN, Owner
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify

pytestmark = pytest.mark.usefixtures("flower_process")
SECRET = b"what the clients' secrets follow from"[:32]
SECURE: dict[str, Any] = {
    "privacy": {"secure_sum": True},
    "aggregation": {"name": "mean", "weights": "equal"},
    "method": {"name": "ferret", "coordinates": 300, "seeds": "shared"},
}
IDENTITIES = [new_identity() for _ in PARTNERS]
KNOWN = frozenset(public_bytes(identity.public_key()) for identity in IDENTITIES)


def secure(folder: Path, rounds: int = 2, **changes: Any) -> Recipe:
    return recipe_of(folder, rounds, **{**SECURE, **changes})


class Partners:
    """The partners' workers, each of which can die and begin anew on the same disk."""

    def __init__(self, folder: Path, states: Path, **limits: Any) -> None:
        self._folder, self._states = folder, states
        self._limits = limits
        self._workers: dict[int, NodeWorker] = {}

    def grid(self, before: Callable[[int, str, int], None] = lambda n, phase, round: None) -> Any:
        """
        Args:
            before: is told of each order: to whom, of which phase and round.
        """

        def handle(client: int, frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
            plan = decode(Order.of(frames).plan, Plan)
            before(client, str(plan.values.get("phase", "keys")), plan.round)
            return self.worker(client).handle(frames)

        nodes = {
            n: Node(lambda frames, n=n: handle(n, frames))  # type: ignore[misc]
            for n in range(len(PARTNERS))
        }
        return Dictionary(nodes)

    def worker(self, client: int) -> NodeWorker:
        if client not in self._workers:
            secret = derived(SECRET, f"client {client}")
            owner = Owner(secret, IDENTITIES[client], Trust(KNOWN))
            state = self._states / str(client)
            self._workers[client] = node_worker(
                self._folder, client, state, owner=owner, **self._limits
            )
        return self._workers[client]

    def kill(self, client: int) -> None:
        self._workers.pop(client).leave()

    def close(self) -> None:
        for client in list(self._workers):
            self.kill(client)


@pytest.fixture
def partners(folder: Path, tmp_path: Path) -> Iterator[Partners]:
    partners = Partners(folder, tmp_path / "states")
    yield partners
    partners.close()


def in_one_process(recipe: Recipe, out: Path) -> RunFolder:
    """The run with the same secrets, without Flower."""
    assembly, folder = assemble(recipe), RunFolder(out)
    folder.create(assembly.recipe)
    folder.secret_file.write_bytes(SECRET)
    run.carry_out(folder, assembly, name=RUN)
    return folder


SCALED = {**SECURE["method"], "scales": "curvature"}


@pytest.mark.parametrize("method", [SECURE["method"], SCALED, {"name": "fedavg"}], ids=str)
def test_the_log_is_that_of_a_run_in_one_process(
    folder: Path, tmp_path: Path, partners: Partners, method: dict[str, Any]
) -> None:
    recipe = secure(folder, method=method)
    real = carry_out(recipe, partners.grid(), tmp_path / "real")
    whole = in_one_process(recipe, tmp_path / "whole")
    assert real.log_file.read_bytes() == whole.log_file.read_bytes()
    assert [r["aggregated"] for r in real.metrics()] == [[0, 1, 2, 3]] * 2
    for name in ("bytes", "train_loss", "refused"):
        assert [r[name] for r in real.metrics()] == [r[name] for r in whole.metrics()], name
    verify(real)


def test_a_partner_who_is_told_other_scales_is_in_no_sum_with_the_others(
    folder: Path, tmp_path: Path, partners: Partners
) -> None:
    grid: Dictionary = partners.grid()
    handle = grid.nodes[3].handle

    def told_others(frames: Mapping[str, bytes]) -> Mapping[str, bytes] | None:
        if "scales" not in frames:
            return handle(frames)
        scales = zlib.compress(bytes(len(zlib.decompress(frames["scales"]))))
        settings = json.loads(frames["settings"])
        settings["scales_hash"] = hashlib.sha256(scales).hexdigest()
        return handle({**frames, "settings": json.dumps(settings).encode(), "scales": scales})

    grid.nodes[3].handle = told_others
    done = carry_out(secure(folder, 1, method=SCALED), grid, tmp_path / "run")
    [record] = done.metrics()
    assert record["aggregated"] == [0, 1, 2]
    assert record["refused"] == [{"client": 3, "reason": "the client's keys are not signed by it"}]


@pytest.mark.parametrize("phase", ["keys", "shares", "mask", "confirm", "unmask"])
def test_a_worker_that_is_killed_in_a_phase_costs_no_more_than_its_part(
    folder: Path, tmp_path: Path, partners: Partners, phase: str
) -> None:
    """Killed before it answers. In the first phase it trains again; after that its keys are gone,
    and the sum is without it unless its numbers were in it."""
    killed = []

    def before(client: int, asked: str, round: int) -> None:
        if (client, asked, round) == (2, phase, 1) and not killed:
            killed.append(client)
            partners.kill(client)

    done = carry_out(secure(folder, 3), partners.grid(before), tmp_path / "run")
    assert killed == [2]
    within = [0, 1, 3] if phase in ("shares", "mask") else [0, 1, 2, 3]
    assert [r["aggregated"] for r in done.metrics()] == [[0, 1, 2, 3], within, [0, 1, 2, 3]]
    refused = done.metrics()[1]["refused"]
    assert [r["client"] for r in refused] == ([] if phase == "keys" else [2])
    assert verify(done) >= 3


def test_a_server_that_is_killed_while_numbers_are_out_passes_over_the_round(
    folder: Path, tmp_path: Path, partners: Partners
) -> None:
    """What the nodes gave is on their disks: they do not give it twice, after a restart either."""

    def before(client: int, asked: str, round: int) -> None:
        if (client, asked, round) == (3, "confirm", 1):
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        carry_out(secure(folder, 3), partners.grid(before), out)
    partners.close()
    done = carry_out(secure(folder, 3), partners.grid(), out)
    assert [len(r["aggregated"]) for r in done.metrics()] == [4, 0, 4]
    reasons = {r["reason"] for r in done.metrics()[1]["refused"]}
    assert all("went out already" in reason for reason in reasons)
    verify(done)


def test_an_evicted_run_does_not_have_its_rounds_again(folder: Path, tmp_path: Path) -> None:
    """A server may have a node forget a run by others; not what it gave in it."""
    partners = Partners(folder, tmp_path / "states", most_runs=1)
    carry_out(secure(folder, 1), partners.grid(), tmp_path / "run")
    for client in range(len(PARTNERS)):
        for old in (tmp_path / "states" / str(client)).iterdir():
            if old.is_dir():
                old.rename(old.with_name("f" * 16))  # as if another run had been joined since
    partners.close()
    [line] = carry_out(secure(folder, 1), partners.grid(), tmp_path / "again").metrics()
    assert line["aggregated"] == []
    assert {r["reason"] for r in line["refused"]} == {GIVEN}
    partners.close()


def refusal_of(recipe: Recipe, partners: Partners, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        carry_out(recipe, partners.grid(), out)
    return str(caught.value)


def test_owners_can_insist_on_sums_and_on_an_epsilon(folder: Path, tmp_path: Path) -> None:
    plain = recipe_of(folder, 1)
    noisy = {"protects": "client", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}
    both = {**noisy, "secure_sum": True}
    for number, (limits, recipe, said) in enumerate(
        [
            ({"secure_sums": True}, plain, "limits.secure_sums of the node"),
            ({"secure_sums": True}, secure(folder, 1, privacy=noisy), "sees every report"),
            ({"most_epsilon": 4.0}, secure(folder, 1), "the run keeps to no epsilon"),
            ({"most_epsilon": 9.0}, secure(folder, 1, privacy=noisy), "the noise is the server's"),
            ({"most_epsilon": 4.0}, secure(folder, 1, privacy=both), "the run's is 8, not 4"),
        ]
    ):
        partners = Partners(folder, tmp_path / f"states-{number}", **limits)
        text = refusal_of(recipe, partners, tmp_path / f"run-{number}")
        assert said in text
        partners.close()


def test_noise_of_the_nodes_own_is_the_same_as_in_one_process(
    folder: Path, tmp_path: Path, partners: Partners
) -> None:
    noisy = {"protects": "client", "noise": 0.5, "delta": 1e-2, "clip": 1.0, "secure_sum": True}
    recipe = secure(folder, privacy=noisy)
    real = carry_out(recipe, partners.grid(), tmp_path / "real")
    whole = in_one_process(recipe, tmp_path / "whole")
    assert real.log_file.read_bytes() == whole.log_file.read_bytes()
    assert [r["epsilon"] for r in real.metrics()] == [r["epsilon"] for r in whole.metrics()]


def test_a_nodes_secret_and_partners_are_files_of_its_folder(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path)
    create_node_key(folder.key, tmp_path / "node.pub")
    create_node_key(tmp_path / "other.key", tmp_path / "other.pub")
    settings = NodeFile(server="127.0.0.1:1", name="one", partners=("node.pub", "other.pub"))
    owner = owner_of(folder, settings)
    assert len(owner.secret) == 32
    assert owner_of(folder, settings).secret == owner.secret
    assert folder.secret.stat().st_mode & 0o777 == 0o600
    assert owner.trust.partners is not None
    assert public_bytes(owner.identity.public_key()) in owner.trust.partners
    assert len(owner.trust.partners) == 2
    with pytest.raises(UserError, match=r"partners of node\.toml names no public key"):
        owner_of(folder, settings.model_copy(update={"partners": ("absent.pub",)}))
    folder.secret.write_bytes(b"short")
    with pytest.raises(UserError, match="this is not the secret that the node made"):
        owner_of(folder, settings)
