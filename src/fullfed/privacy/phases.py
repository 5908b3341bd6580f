"""What server and clients tell each other for one secure sum: the five phases of a round.

    keys      the plan of a visit  ->  the client has trained; its keys of this round, signed
    shares    everybody's keys     ->  shares of the client's two seeds, for each of the others
    mask      shares for it        ->  its numbers, masked
    confirm   whose have come      ->  its signature of that list
    unmask    the signatures       ->  for each in the list a share of its own mask's seed, and
                                       for each that is missing one of its private key's

(Bonawitz et al. 2017, figure 4, with the round that makes it safe from a server that lies.) What a
phase asks is a Plan whose value ``phase`` names it, and what comes back a Report, so that they
travel as plans and reports do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Value, check_values
from fullfed.privacy.identities import IDENTITY_BYTES, SIGNATURE_BYTES
from fullfed.privacy.masks import SEED_BYTES
from fullfed.privacy.shares import SEALED_BYTES

PHASE = "phase"
SHARES, MASK, CONFIRM, UNMASK = "shares", "mask", "confirm", "unmask"
PUBLIC_BYTES = 32  # of a public key of X25519
COMMITMENT_BYTES = PUBLIC_BYTES
FEWEST = 3  # clients of a sum: of two, each would see the other's
MOST = 10_000  # clients of a sum
HEADER = 4096  # bytes of a message that are not its tensors, its clients' numbers apart
_BYTES_A_CLIENT = 16  # of a client's number in a list
_ROWS = {  # bytes of a row, for each client in question
    "identities": IDENTITY_BYTES,
    "keys": 2 * PUBLIC_BYTES + COMMITMENT_BYTES,
    "signatures": SIGNATURE_BYTES,
    "shares": SEALED_BYTES,
    "seeds": SEED_BYTES,
    "private": SEED_BYTES,
}


@dataclass(frozen=True)
class PublicKeys:
    """A client's of one round.

    Attributes:
        identity: 49 bytes.
        channel: by which others encrypt what is for it, 32 bytes.
        masks: by which they agree on masks with it, 32 bytes.
        commitment: to the seed of its own mask, 32 bytes; tells false shares of it.
        signature: of the three, by the identity; 96 bytes.
    """

    identity: bytes
    channel: bytes
    masks: bytes
    commitment: bytes
    signature: bytes

    def signed_text(self, about: str, client: int) -> bytes:
        """What the signature is of."""
        return _text("keys", about, client) + self.made

    @property
    def made(self) -> bytes:
        """All that is new in the round, 96 bytes."""
        return self.channel + self.masks + self.commitment

    def tensors(self) -> dict[str, Tensor]:
        return rows_of([self])

    @staticmethod
    def of(message: Plan | Report, count: int) -> list[PublicKeys]:
        """Those of ``count`` clients.

        Raises:
            MessageError: the message does not hold exactly these.
        """
        names = ("identities", "keys", "signatures")
        columns = [read_rows(message, name, count, names) for name in names]
        return [
            PublicKeys(identity, *_thirds(keys), signature)
            for identity, keys, signature in zip(*columns, strict=True)
        ]


def rows_of(keys: Iterable[PublicKeys]) -> dict[str, Tensor]:
    """The tensors of a message with several clients' keys."""
    listed = list(keys)
    return {
        "identities": rows([key.identity for key in listed]),
        "keys": rows([key.made for key in listed]),
        "signatures": rows([key.signature for key in listed]),
    }


def _thirds(made: bytes) -> tuple[bytes, bytes, bytes]:
    one, two = PUBLIC_BYTES, 2 * PUBLIC_BYTES
    return made[:one], made[one:two], made[two:]


def confirmed_text(about: str, clients: Sequence[int]) -> bytes:
    """What a client signs when it is told whose numbers are in a sum."""
    return _text("sum of", about, *clients)


def _text(*parts: object) -> bytes:
    return ("fullfed " + " ".join(map(str, parts)) + "\n").encode()


def request(round: int, client: int, phase: str, clients: Sequence[int], **tensors: Tensor) -> Plan:
    """What the server asks of a client in a phase, about some clients."""
    values: dict[str, Value] = {PHASE: phase, "clients": [*clients]}
    return Plan(round, client, values, tensors)


def phase_of(plan: Plan) -> str | None:
    """The phase that a plan asks for; None for the plan of a visit."""
    phase = plan.values.get(PHASE)
    return None if phase is None else str(phase)


def clients_of(plan: Plan) -> list[int]:
    """The clients that a request is about, in increasing order.

    Raises:
        MessageError: it does not name them so.
    """
    check_values(plan, [PHASE, "clients"])
    named = plan.values["clients"]
    clients = [n for n in named if type(n) is int] if isinstance(named, list) else []
    increasing = all(a < b for a, b in pairwise(clients))
    whole = isinstance(named, list) and len(clients) == len(named)
    if not whole or not increasing or len(clients) > MOST or any(n < 0 for n in clients):
        raise MessageError("the request does not name clients in their order")
    return clients


def reply(plan: Plan, **tensors: Tensor) -> Report:
    """A client's answer to a request."""
    return Report(plan.round, plan.client, samples=1, loss=0.0, tensors=tensors)


def rows(items: Sequence[bytes]) -> Tensor:
    """Byte strings of one length as uint8, one a row."""
    flat = torch.frombuffer(bytearray(b"".join(items)), dtype=torch.uint8) if items else None
    return torch.zeros((0, 0), dtype=torch.uint8) if flat is None else flat.view(len(items), -1)


def read_rows(message: Plan | Report, name: str, count: int, due: Sequence[str]) -> list[bytes]:
    """The rows of one of a message's tensors.

    Args:
        due: the names of all tensors that the message must have.

    Raises:
        MessageError: it has others, or this one has not ``count`` rows of its length.
    """
    if set(message.tensors) != set(due):
        raise MessageError(f"the {message.kind} does not hold exactly {', '.join(sorted(due))}")
    tensor = message.tensors[name]
    shape = (count, _ROWS[name]) if count else (0, 0)
    if tensor.dtype != torch.uint8 or tuple(tensor.shape) != shape:
        raise MessageError(f"the {message.kind}'s {name!r} are not {count} of {_ROWS[name]} bytes")
    return [bytes(row) for row in tensor.numpy()]


def most_reply_bytes(phase: str, clients: int) -> int:
    """The most bytes that an honest answer has, but for masked numbers."""
    a_client = {SHARES: SEALED_BYTES, UNMASK: 2 * SEED_BYTES}.get(phase, 0)
    return HEADER + clients * (a_client + _BYTES_A_CLIENT)
