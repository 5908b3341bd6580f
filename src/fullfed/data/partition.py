"""Who owns which examples: the ways the literature splits a dataset into clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullfed.data.dirichlet import dirichlet
from fullfed.data.examples import Example
from fullfed.errors import UserError
from fullfed.randomness import Purpose, Stream, permutation

Kind = Literal["task", "category", "dirichlet", "iid"]

_ATTEMPTS = 200


class Part(NamedTuple):
    """One client's share: its name and the indices of its examples, ascending."""

    name: str
    indices: tuple[int, ...]


def partition(
    examples: Sequence[Example],
    kind: Kind,
    clients: int | None,
    alpha: float,
    minimum: int,
    seed: int,
) -> list[Part]:
    """Splits examples so that each belongs to exactly one client.

    Args:
        examples: what to split.
        kind: "task" or "category", one client for each value, in order of names; "dirichlet",
            label skew (the label is the category, else the task): each label's examples are
            shared out in proportions drawn from Dirichlet(alpha), as FederatedScope and FedKSeed
            do; "iid", random parts of equal size.
        clients: how many, for "dirichlet" and "iid"; None for the others, whose data decide.
        alpha: Dirichlet concentration; small is skewed. Not used by the others.
        minimum: the fewest examples a client may have.
        seed: fixes the split.

    Raises:
        UserError: the split cannot be had, or a client would have fewer than `minimum`.
    """
    if kind in ("task", "category"):
        if clients is not None:
            raise UserError(
                f"The partition by {kind} makes one client for each {kind}; leave out clients."
            )
        parts = _by_value([getattr(example, kind) for example in examples], kind)
    elif kind in ("iid", "dirichlet"):
        count = _checked_count(len(examples), kind, clients, minimum)
        width = len(str(count - 1))
        shares = (
            _equal_shares(len(examples), count, seed)
            if kind == "iid"
            else _skewed_shares(_labels(examples), count, alpha, minimum, seed)
        )
        parts = [Part(f"client-{i:0{width}}", tuple(s)) for i, s in enumerate(shares)]
    else:
        raise UserError(
            f'Unknown partition {kind!r}; choose "task", "category", "dirichlet" or "iid".'
        )
    for part in parts:
        if len(part.indices) < max(minimum, 1):
            raise UserError(
                f"Client {part.name} is left with {len(part.indices)} examples and the minimum is "
                f"{max(minimum, 1)}; lower the minimum or leave that {kind} out of the data."
            )
    return parts


def _by_value(values: Sequence[str], kind: str) -> list[Part]:
    if "" in values:
        raise UserError(
            f"Example {values.index('') + 1} has no {kind}; "
            f"choose another partition than {kind!r} for this data."
        )
    owned: dict[str, list[int]] = {value: [] for value in sorted(set(values))}
    for index, value in enumerate(values):
        owned[value].append(index)
    return [Part(name, tuple(indices)) for name, indices in owned.items()]


def _checked_count(examples: int, kind: str, clients: int | None, minimum: int) -> int:
    if clients is None or clients < 1:
        raise UserError(f"The partition {kind!r} needs clients, a whole number above zero.")
    if clients * max(minimum, 1) > examples:
        raise UserError(
            f"{examples} examples cannot give {clients} clients {max(minimum, 1)} each; "
            "ask for fewer clients or lower the minimum."
        )
    return clients


def _equal_shares(examples: int, clients: int, seed: int) -> list[list[int]]:
    order = permutation(Stream(seed, Purpose.PARTITION), examples)
    return [sorted(share.tolist()) for share in np.array_split(order, clients)]


def _labels(examples: Sequence[Example]) -> NDArray[np.int64]:
    """A number for each example's category, or for its task where there are no categories."""
    names = [example.category or example.task for example in examples]
    if "" in names:
        raise UserError(
            f"Example {names.index('') + 1} has neither category nor task, which the Dirichlet "
            'partition skews by; choose the partition "iid" for this data.'
        )
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _skewed_shares(
    labels: NDArray[np.int64], clients: int, alpha: float, minimum: int, seed: int
) -> list[list[int]]:
    if alpha <= 0:
        raise UserError(f"The Dirichlet partition needs an alpha above zero, not {alpha}.")
    for attempt in range(_ATTEMPTS):
        shares = _skewed_attempt(labels, clients, alpha, seed, attempt)
        if min(map(len, shares)) >= minimum:
            return [sorted(share) for share in shares]
    raise UserError(
        f"No Dirichlet({alpha}) split in {_ATTEMPTS} attempts gave each of {clients} clients "
        f"{minimum} examples; raise alpha, ask for fewer clients or lower the minimum."
    )


def _skewed_attempt(
    labels: NDArray[np.int64], clients: int, alpha: float, seed: int, attempt: int
) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in range(clients)]
    fair = len(labels) / clients
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        stream = Stream(seed, Purpose.PARTITION, round=attempt, owner=label)
        members = members[permutation(stream, len(members))]
        # Who has a fair share already gets no more, or the largest clients would take all.
        hungry = [share for share in shares if len(share) < fair]
        ends = np.cumsum(dirichlet(stream, alpha, len(hungry))) * len(members)
        taken = np.split(members, np.floor(ends[:-1]).astype(np.int64))
        for share, indices in zip(hungry, taken, strict=True):
            share.extend(indices.tolist())
    return shares
