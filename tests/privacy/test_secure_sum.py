"""A secure sum is the sum, whoever is lost on the way, and shows nothing else, whoever lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan
from fullfed.privacy.identities import public_bytes
from fullfed.privacy.integers import signed, unpack, unpack_scalars
from fullfed.privacy.participant import Participant, Trust
from fullfed.privacy.phases import UNMASK, request, rows
from fullfed.privacy.shares import threshold
from privacy.rounds import ROUND, Run, identity, participant

PHASES = ("keys", "shares", "mask", "confirm", "unmask")
COUNT = 40


def numbers_of(client: int) -> list[int]:
    return np.random.default_rng(client).integers(-100, 101, COUNT).tolist()


def everybody(count: int) -> dict[int, Participant]:
    # Clients have numbers of their own in a federation: not 0, 1, 2, ... of a cohort.
    return {n: participant(n, numbers_of(n)) for n in (7 * k + 2 for k in range(count))}


@settings(max_examples=25)
@given(st.integers(3, 7), st.data())
def test_the_sum_is_that_of_the_survivors(count: int, data: st.DataObject) -> None:
    """Up to as many as can be are lost, in any phases; nobody is lost twice."""
    participants = everybody(count)
    lost: dict[str, list[int]] = {}
    left = sorted(participants)
    keyed = count
    for phase in PHASES:
        spare = len(left) - (3 if phase == "keys" else threshold(keyed))
        lost[phase] = data.draw(
            st.lists(st.sampled_from(left), max_size=max(spare, 0), unique=True)
        )
        left = [client for client in left if client not in lost[phase]]
        keyed = len(left) if phase == "keys" else keyed
    run = Run(participants, COUNT)
    total = run.whole(lost)
    summed = [c for c in participants if all(c not in lost[p] for p in ("keys", "shares", "mask"))]
    assert run.coordinator.summed == sorted(summed)
    due = np.sum([numbers_of(client) for client in summed], axis=0)
    assert signed(total.integers, 12).tolist() == due.tolist()
    assert unpack_scalars(total.scalars) == [
        sum(client + 0.5 for client in summed),
        -0.25 * len(summed),
    ]


@pytest.mark.parametrize("phase", PHASES[1:])
def test_more_than_a_third_lost_cannot_be_unmasked(phase: str) -> None:
    participants = everybody(6)
    lost = {phase: sorted(participants)[:2]}
    with pytest.raises(MessageError, match="too few"):
        Run(participants, COUNT).whole(lost)


def test_a_masked_vector_is_uniform_and_another_every_time() -> None:
    """The chi-square test of its bits and of its values, at numbers that are all zero."""
    values = []
    for _ in range(6):
        run = Run({n: participant(n, [0] * 4000, 8) for n in range(3)}, 4000, 8)
        run.whole()
        values += [
            unpack(report.tensors["numbers"].numpy(), 4000, 8)
            for report in run.seen["mask"].values()
        ]
    counts = np.bincount(np.concatenate(values), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    for one in range(len(values)):
        for other in range(one):
            pairs = np.bincount((values[one] ^ values[other]) >> 4, minlength=16)
            assert stats.chisquare(pairs).pvalue > 1e-6  # no two have anything in common


def test_what_the_server_sees_does_not_tell_two_inputs_with_one_sum_apart() -> None:
    """Of client 0's masked numbers, over many runs: two-sample tests of the values, and of what
    they are together with another client's."""
    inputs = {"one": [[50], [-20], [3]], "other": [[-60], [90], [3]]}
    seen: dict[str, list[list[int]]] = {"one": [], "other": []}
    for name, numbers in inputs.items():
        for _ in range(20):
            run = Run({n: participant(n, numbers[n] * 60, 8) for n in range(3)}, 60, 8)
            assert set(signed(run.whole().integers, 8)) == {33}
            masked = [run.seen["mask"][n].tensors["numbers"].numpy() for n in (0, 1)]
            seen[name] += np.stack(masked, axis=1).astype(int).tolist()
    one, other = (np.array(seen[name]) for name in ("one", "other"))
    for statistic in (
        lambda pairs: pairs[:, 0],
        lambda pairs: pairs[:, 1],
        lambda pairs: (pairs[:, 0] + pairs[:, 1]) % 256,
        lambda pairs: (pairs[:, 0] - pairs[:, 1]) % 256,
    ):
        table = [np.bincount(statistic(pairs) // 16, minlength=16) for pairs in (one, other)]
        assert stats.chi2_contingency(table).pvalue > 1e-4


def until_masked() -> Run:
    run = Run(everybody(4), COUNT)
    run.keys()
    run.phase("shares")
    run.phase("mask")
    return run


def test_a_server_cannot_have_two_lists_confirmed() -> None:
    run = until_masked()
    run.phase("confirm")
    others = run.coordinator.summed[1:]
    one = run.participants[others[0]]
    with pytest.raises(MessageError, match="was asked for before"):
        one.answer(request(ROUND, others[0], "confirm", others))


def test_a_server_that_says_a_client_dropped_out_learns_nothing() -> None:
    """It tells some that all are in the sum, and others that one is missing: neither list gets the
    signatures that the others ask for before they part with shares."""
    run = until_masked()
    everyone = run.coordinator.summed
    told = {client: everyone if n < 2 else everyone[1:] for n, client in enumerate(everyone)}
    signatures = {
        client: run.participants[client].answer(request(ROUND, client, "confirm", told[client]))
        for client in everyone
    }
    for client in everyone:
        listed = rows([bytes(signatures[c].tensors["signatures"].numpy()) for c in told[client]])
        asked = request(ROUND, client, UNMASK, told[client], signatures=listed)
        with pytest.raises(MessageError, match="has not confirmed"):
            run.participants[client].answer(asked)


def test_shares_of_one_client_are_of_one_kind() -> None:
    """In the sum: of its own mask. Missing: of its private key. Never both."""
    run = until_masked()
    survivors = run.coordinator.summed[:-1]
    for client in survivors:
        answer = run.participants[client].answer(request(ROUND, client, "confirm", survivors))
        run.coordinator._signatures[client] = bytes(answer.tensors["signatures"].numpy())
    listed = rows([run.coordinator._signatures[c] for c in survivors])
    answer = run.participants[survivors[0]].answer(
        request(ROUND, survivors[0], UNMASK, survivors, signatures=listed)
    )
    assert answer.tensors["seeds"].shape[0] == len(survivors)
    assert answer.tensors["private"].shape[0] == 1


def test_a_server_cannot_put_keys_of_its_own_in_anothers_place() -> None:
    run = Run(everybody(4), COUNT)
    run.keys()
    victim, other, *_ = sorted(run.participants)
    plan = run.coordinator.share_requests()[0]
    assert plan.client == victim
    keys = plan.tensors["keys"].clone()
    keys[1] = keys[0]
    with pytest.raises(MessageError, match=f"client {other} are not signed"):
        run.participants[victim].answer(replace(plan, tensors={**plan.tensors, "keys": keys}))


def test_clients_whom_the_owner_does_not_know_are_refused() -> None:
    known = [public_bytes(identity(n).public_key()) for n in range(3)]
    participants = {n: participant(n, numbers_of(n), trust=Trust(known)) for n in range(3)}
    Run(participants, COUNT).whole()
    stranger = {**participants, 3: participant(3, numbers_of(3))}
    stranger[0] = participant(0, numbers_of(0), trust=Trust(known))
    run = Run(stranger, COUNT)
    run.keys()
    with pytest.raises(MessageError, match="none of the partners"):
        stranger[0].answer(run.coordinator.share_requests()[0])


def test_a_sum_that_shrinks_below_what_the_owner_allows_is_refused() -> None:
    """Of 7 it takes 5 to unmask; an owner whose noise is a sixth of what is due asks for 6."""
    participants = {n: participant(n, numbers_of(n), trust=Trust(None, 6)) for n in range(7)}
    for phase in ("shares", "mask"):
        with pytest.raises(MessageError, match="too few clients"):
            Run(participants, COUNT).whole({phase: [5, 6]})
        participants = {n: participant(n, numbers_of(n), trust=Trust(None, 6)) for n in range(7)}


def test_a_sum_of_fewer_than_the_owner_allows_is_refused() -> None:
    participants = {n: participant(n, numbers_of(n), trust=Trust(None, 5)) for n in range(4)}
    with pytest.raises(MessageError, match="of too few"):
        Run(participants, COUNT).whole()


@pytest.mark.parametrize("phase", ["shares", "mask", "confirm", "unmask"])
def test_the_same_request_has_the_same_answer_and_another_has_none(phase: str) -> None:
    run = Run(everybody(4), COUNT)
    run.keys()
    requests = {
        "shares": run.coordinator.share_requests,
        "mask": run.coordinator.mask_requests,
        "confirm": run.coordinator.confirm_requests,
        "unmask": run.coordinator.unmask_requests,
    }
    for name in requests:
        asked = requests[name]()[0]
        run.phase(name)
        if name == phase:
            break
    one = run.participants[asked.client]
    again = one.answer(asked)
    for name, tensor in run.seen[phase][asked.client].tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    with pytest.raises(MessageError, match="asked for before"):
        one.answer(replace(asked, values={**asked.values, "clients": [asked.client]}))


@pytest.mark.parametrize("phase", ["mask", "confirm", "unmask", "nonsense"])
def test_phases_come_in_their_order(phase: str) -> None:
    one = participant(0, [1, 2, 3])
    with pytest.raises(MessageError, match="not what comes next"):
        one.answer(Plan(ROUND, 0, {"phase": phase, "clients": [0, 1, 2]}))
