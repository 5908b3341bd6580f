"""The server's side of one secure sum: it passes on what clients send, and learns the sum alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, check_values
from fullfed.privacy.identities import is_signed
from fullfed.privacy.masks import (
    Summand,
    agreed,
    committed,
    own_mask,
    pair_purpose,
    private_key,
)
from fullfed.privacy.phases import (
    CONFIRM,
    MASK,
    SHARES,
    UNMASK,
    PublicKeys,
    confirmed_text,
    read_rows,
    request,
    rows,
    rows_of,
)
from fullfed.privacy.shares import combine, threshold


class Coordinator:
    """One round's sum.

    Each phase's ``..._requests`` are for the clients that have answered so far; each ``take_...``
    reads one answer and raises a MessageError if it is no use, so that its client is left out.

    Args:
        about: the run and the round, as clients call them.
        round: the number of the round.
        count, bits, scalars: how many integers, of how many bits, and how many bytes of scalars a
            client adds.
    """

    def __init__(self, about: str, round: int, count: int, bits: int, scalars: int) -> None:
        self.about, self._round = about, round
        self._count, self._bits, self._scalar_bytes = count, bits, scalars
        self._keys: dict[int, PublicKeys] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}  # by sender and receiver
        self._total: Summand | None = None
        self._summed: list[int] = []
        self._signatures: dict[int, bytes] = {}
        self._seeds: dict[int, dict[int, bytes]] = {}  # shares, by whose they are and who held them
        self._private: dict[int, dict[int, bytes]] = {}

    @property
    def fewest(self) -> int:
        """How many must be left in every phase after the keys."""
        return threshold(len(self._keys))

    @property
    def summed(self) -> list[int]:
        """The clients whose numbers are in the sum, in increasing order."""
        return sorted(self._summed)

    def take_keys(self, report: Report) -> None:
        check_values(report, [])
        (keys,) = PublicKeys.of(report, 1)
        text = keys.signed_text(self.about, report.client)
        if not is_signed(keys.identity, text, keys.signature):
            raise MessageError("the client's keys are not signed by it")
        if keys.identity in {other.identity for other in self._keys.values()}:
            raise MessageError("another client has the same identity")
        self._keys[report.client] = keys

    def share_requests(self) -> list[Plan]:
        clients = sorted(self._keys)
        tensors = rows_of(self._keys[client] for client in clients)
        return [request(self._round, client, SHARES, clients, **tensors) for client in clients]

    def take_shares(self, report: Report) -> None:
        check_values(report, [])
        clients = sorted(self._keys)
        sealed = read_rows(report, "shares", len(clients), ["shares"])
        self._sealed[report.client] = dict(zip(clients, sealed, strict=True))

    def mask_requests(self) -> list[Plan]:
        senders = sorted(self._sealed)
        return [
            request(
                self._round,
                client,
                MASK,
                senders,
                shares=rows([self._sealed[sender][client] for sender in senders]),
            )
            for client in senders
        ]

    def take_masked(self, report: Report) -> None:
        """The report's tensors have been checked."""
        summand = Summand.of(report.tensors, self._count, self._bits)
        if self._total is None:
            self._total = summand
        else:
            self._total.add_(summand)
        self._summed.append(report.client)

    def confirm_requests(self) -> list[Plan]:
        return [request(self._round, client, CONFIRM, self.summed) for client in self.summed]

    def take_confirmation(self, report: Report) -> None:
        check_values(report, [])
        (signature,) = read_rows(report, "signatures", 1, ["signatures"])
        text = confirmed_text(self.about, self.summed)
        if not is_signed(self._keys[report.client].identity, text, signature):
            raise MessageError("the client has not signed the list of those in the sum")
        self._signatures[report.client] = signature

    def unmask_requests(self) -> list[Plan]:
        signers = sorted(self._signatures)
        signatures = rows([self._signatures[client] for client in signers])
        return [
            request(self._round, client, UNMASK, signers, signatures=signatures)
            for client in signers
        ]

    def take_seeds(self, report: Report) -> None:
        check_values(report, [])
        names = ["seeds", "private"]
        seeds = read_rows(report, "seeds", len(self._summed), names)
        private = read_rows(report, "private", len(self._missing), names)
        for client, share in zip(self.summed, seeds, strict=True):
            self._seeds.setdefault(client, {})[report.client] = share
        for client, share in zip(self._missing, private, strict=True):
            self._private.setdefault(client, {})[report.client] = share

    @property
    def _missing(self) -> list[int]:
        """Those whose masks are in others' numbers, but not their own numbers in the sum."""
        return sorted(self._sealed.keys() - set(self._summed))

    def total(self) -> Summand:
        """The sum of what the clients of ``summed`` added.

        Raises:
            MessageError: too few shares have come, or those of a client do not tell its seed,
                so that somebody lied.
        """
        assert self._total is not None
        total = self._total
        for client in self.summed:
            seed = self._seed(self._seeds[client])
            if committed(seed) != self._keys[client].commitment:
                raise MessageError(f"somebody's share of the mask of client {client} is false")
            total.mask_(own_mask(seed), -1)
        for client in self._missing:
            private = private_key(self._seed(self._private[client]))
            if private.public_key().public_bytes_raw() != self._keys[client].masks:
                raise MessageError(f"somebody's share of the key of client {client} is false")
            for other in self.summed:
                purpose = pair_purpose(self.about, client, other)
                pair = agreed(private, self._keys[other].masks, purpose)
                total.mask_(pair, -1 if other < client else 1)
        return total

    def _seed(self, shares: Mapping[int, bytes]) -> bytes:
        if len(shares) < self.fewest:
            raise MessageError("too few clients have sent shares")
        places: Sequence[int] = sorted(self._keys)
        placed = {places.index(client): share for client, share in shares.items()}
        return combine(placed, len(places))
