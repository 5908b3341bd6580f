"""Secure sums in one process, phase by phase, with clients that are lost on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fullfed.federation.messages import Plan, Report, decode, encode
from fullfed.privacy.coordinator import Coordinator
from fullfed.privacy.identities import Identity, new_identity
from fullfed.privacy.integers import modular, pack_scalars
from fullfed.privacy.masks import Summand
from fullfed.privacy.participant import Participant, Trust
from fullfed.privacy.phases import reply

ABOUT = "round 3 of run test"
ROUND = 3
_IDENTITIES: dict[int, Identity] = {}


def identity(client: int) -> Identity:
    if client not in _IDENTITIES:
        _IDENTITIES[client] = new_identity()
    return _IDENTITIES[client]


def participant(
    client: int, numbers: Sequence[int], bits: int = 12, trust: Trust | None = None
) -> Participant:
    """A client that adds some integers and two scalars."""
    integers = modular(np.array(numbers, dtype=np.int64), bits)
    summand = Summand(integers, bits, pack_scalars([client + 0.5, -0.25]))
    return Participant(ABOUT, client, identity(client), summand, trust or Trust())


class Run:
    """One sum of some participants.

    Attributes:
        seen: what the server got, by phase and client.
    """

    def __init__(self, participants: Mapping[int, Participant], count: int, bits: int = 12) -> None:
        self.participants = participants
        self.coordinator = Coordinator(ABOUT, ROUND, count, bits, scalars=32)
        self.seen: dict[str, dict[int, Report]] = {}

    def keys(self, lost: Collection[int] = ()) -> None:
        for client, one in self.participants.items():
            if client not in lost:
                self.coordinator.take_keys(reply(Plan(ROUND, client), **one.keys.tensors()))

    def phase(self, name: str, lost: Collection[int] = ()) -> None:
        requests, take = {
            "shares": (self.coordinator.share_requests, self.coordinator.take_shares),
            "mask": (self.coordinator.mask_requests, self.coordinator.take_masked),
            "confirm": (self.coordinator.confirm_requests, self.coordinator.take_confirmation),
            "unmask": (self.coordinator.unmask_requests, self.coordinator.take_seeds),
        }[name]
        answers = self.seen.setdefault(name, {})
        for request in requests():
            if request.client not in lost:
                plan = decode(encode(request), Plan)
                answer = decode(encode(self.participants[request.client].answer(plan)), Report)
                answers[request.client] = answer
                take(answer)

    def whole(self, lost: Mapping[str, Collection[int]] | None = None) -> Summand:
        lost = lost or {}
        self.keys(lost.get("keys", ()))
        for name in ("shares", "mask", "confirm", "unmask"):
            self.phase(name, lost.get(name, ()))
        return self.coordinator.total()
