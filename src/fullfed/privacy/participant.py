"""A client's side of one secure sum.

It answers each phase once: the same request again has the same answer, another one is refused. So
no server can have two sets of shares, two masked vectors or two lists of survivors from it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, encode
from fullfed.payloads import Payload
from fullfed.privacy.identities import Identity, is_signed, public_bytes, sign
from fullfed.privacy.masks import (
    SEED_BYTES,
    Summand,
    agreed,
    committed,
    own_mask,
    pair_purpose,
    private_key,
)
from fullfed.privacy.phases import (
    CONFIRM,
    FEWEST,
    MASK,
    SHARES,
    UNMASK,
    PublicKeys,
    clients_of,
    confirmed_text,
    phase_of,
    read_rows,
    reply,
    rows,
)
from fullfed.privacy.shares import SEALED_BYTES, opened, seal, split, threshold

_NOTHING = bytes(SEALED_BYTES)  # in a client's own place


@dataclass(frozen=True)
class Trust:
    """What a client's owner knows of the others.

    Attributes:
        partners: the identities that may be in a sum with it; None for those the server names.
        fewest: clients that a sum must be of.
    """

    partners: Collection[bytes] | None = None
    fewest: int = FEWEST


@dataclass
class Participant:
    """One client in one round's sum.

    Args:
        about: the run and the round.
        client: its number.
        identity: its own.
        numbers: what it adds to the sum.
        trust: whom it lets into a sum with it.
        releasing: called once, before its masked numbers go out.

    Attributes:
        keys: the client's of this round.
    """

    about: str
    client: int
    identity: Identity
    numbers: Summand
    trust: Trust = field(default_factory=Trust)
    releasing: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        """Make the round's secrets, of the system's randomness."""
        self._channel = private_key(secrets.token_bytes(SEED_BYTES))
        self._own_seed, self._masks_seed = (secrets.token_bytes(SEED_BYTES) for _ in range(2))
        self._masks = private_key(self._masks_seed)
        self.keys = self._signed_keys()
        self._answered: dict[str, tuple[Payload, Report]] = {}
        self._others: dict[int, PublicKeys] = {}  # of the round, itself among them
        self._held: dict[int, tuple[bytes, bytes]] = {}  # shares of seeds: own, private
        self._fewest = FEWEST  # that must be left in every phase
        self._masking: list[int] = []  # whose masks are in its numbers
        self._survivors: list[int] = []

    def _signed_keys(self) -> PublicKeys:
        channel, masks = (
            private.public_key().public_bytes_raw() for private in (self._channel, self._masks)
        )
        identity, commitment = public_bytes(self.identity.public_key()), committed(self._own_seed)
        unsigned = PublicKeys(identity, channel, masks, commitment, b"")
        signature = sign(self.identity, unsigned.signed_text(self.about, self.client))
        return replace(unsigned, signature=signature)

    def answer(self, plan: Plan) -> Report:
        """The answer to a phase's request.

        Raises:
            MessageError: the request is not one that an honest server makes now; nothing was told.
        """
        phase, asked = str(phase_of(plan)), encode(plan)
        if phase in self._answered:
            before, answer = self._answered[phase]
            if before != asked:
                raise MessageError(f"the phase {phase!r} was asked for before, and otherwise")
            return answer
        order = [SHARES, MASK, CONFIRM, UNMASK]
        if phase not in order or list(self._answered) != order[: order.index(phase)]:
            raise MessageError(f"the phase {phase[:40]!r} is not what comes next")
        answers = {
            SHARES: self._share,
            MASK: self._mask,
            CONFIRM: self._confirm,
            UNMASK: self._unmask,
        }
        answer = answers[phase](plan, clients_of(plan))
        self._answered[phase] = asked, answer
        return answer

    def _share(self, plan: Plan, clients: list[int]) -> Report:
        listed = dict(zip(clients, PublicKeys.of(plan, len(clients)), strict=True))
        self._check_keys(listed)
        pairs = zip(
            split(self._own_seed, len(clients)), split(self._masks_seed, len(clients)), strict=True
        )
        sealed = []
        for client, shares in zip(clients, pairs, strict=True):
            if client == self.client:
                self._held[client] = shares
                sealed.append(_NOTHING)
                continue
            key = self._channel_key(listed[client], self.client, client)
            sealed.append(seal(key, shares, self.about))
        self._others = listed
        return reply(plan, shares=rows(sealed))

    def _check_keys(self, listed: dict[int, PublicKeys]) -> None:
        if listed.get(self.client) != self.keys:
            raise MessageError("the list of keys does not have this client's own")
        if len(listed) < max(self.trust.fewest, FEWEST):
            raise MessageError(f"a sum of {len(listed)} clients is of too few")
        self._fewest = max(threshold(len(listed)), self.trust.fewest)
        identities = {keys.identity for keys in listed.values()}
        if len(identities) < len(listed):
            raise MessageError("two clients of the sum have one identity")
        others = identities - {self.keys.identity}
        if self.trust.partners is not None and not others <= set(self.trust.partners):
            raise MessageError("a client of the sum is none of the partners that the node knows")
        for client, keys in listed.items():
            if not is_signed(keys.identity, keys.signed_text(self.about, client), keys.signature):
                raise MessageError(f"the keys of client {client} are not signed by it")

    def _channel_key(self, other: PublicKeys, sender: int, receiver: int) -> bytes:
        purpose = f"shares of {sender} for {receiver} in {self.about}"
        try:
            return agreed(self._channel, other.channel, purpose)
        except ValueError as error:
            raise MessageError("a public key in the list is none") from error

    def _mask(self, plan: Plan, senders: list[int]) -> Report:
        sealed = read_rows(plan, "shares", len(senders), ["shares"])
        if self.client not in senders or not set(senders) <= set(self._others):
            raise MessageError("the shares are not from clients of this sum")
        if len(senders) < self._fewest:
            raise MessageError("too few clients have sent shares")
        masked = self.numbers.copy()
        masked.mask_(own_mask(self._own_seed))
        for sender, text in zip(senders, sealed, strict=True):
            if sender == self.client:
                continue
            other = self._others[sender]
            key = self._channel_key(other, sender, self.client)
            try:
                self._held[sender] = opened(key, text, self.about)
                purpose = pair_purpose(self.about, self.client, sender)
                pair = agreed(self._masks, other.masks, purpose)
            except ValueError as error:
                raise MessageError(f"what client {sender} sent does not fit: {error}") from error
            masked.mask_(pair, 1 if self.client < sender else -1)
        self.releasing()
        self._masking = senders
        return reply(plan, **masked.tensors())

    def _confirm(self, plan: Plan, survivors: list[int]) -> Report:
        if plan.tensors:
            raise MessageError("the request holds tensors")
        if self.client not in survivors or not set(survivors) <= set(self._masking):
            raise MessageError("the sum would not be of those whose masks are in it")
        if len(survivors) < self._fewest:
            raise MessageError("too few clients are in the sum")
        self._survivors = survivors
        signature = sign(self.identity, confirmed_text(self.about, survivors))
        return reply(plan, signatures=rows([signature]))

    def _unmask(self, plan: Plan, signers: list[int]) -> Report:
        signatures = read_rows(plan, "signatures", len(signers), ["signatures"])
        text = confirmed_text(self.about, self._survivors)
        if not set(signers) <= set(self._survivors) or len(signers) < self._fewest:
            raise MessageError("too few clients have confirmed who is in the sum")
        for signer, signature in zip(signers, signatures, strict=True):
            if not is_signed(self._others[signer].identity, text, signature):
                raise MessageError(f"client {signer} has not confirmed who is in the sum")
        missing = [client for client in self._masking if client not in self._survivors]
        return reply(
            plan,
            seeds=rows([self._held[client][0] for client in self._survivors]),
            private=rows([self._held[client][1] for client in missing]),
        )
