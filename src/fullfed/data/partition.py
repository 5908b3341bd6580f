"""Who holds which examples: the partitions of a data set among clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullfed.config_data import DataTable
from fullfed.data.examples import Example
from fullfed.errors import UserError
from fullfed.randomness import Purpose, Stream, permutation, uniforms


def dirichlet(stream: Stream, alpha: float, count: int) -> NDArray[np.float64]:
    """One draw from the symmetric Dirichlet(alpha) over `count` parts, shape (count,), sum 1.

    Gamma draws by Marsaglia and Tsang (2000), normalised. In logarithms, because for a small
    alpha a gamma draw may be below the least float64. Uses the stream's blocks 1 and 2, so that
    block 0 is the caller's.
    """
    boost = np.log1p(-uniforms(replace(stream, block=1), count)) / alpha
    logs = _log_gammas(replace(stream, block=2), alpha + 1.0, count) + boost
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _log_gammas(stream: Stream, shape: float, count: int) -> NDArray[np.float64]:
    """Logarithms of Gamma(shape) draws for a shape of at least 1, by rejection."""
    d = shape - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    values = np.empty(count)
    pending = np.arange(count)
    start = 0
    while len(pending):
        u = uniforms(stream, 3 * len(pending), start).reshape(3, -1)
        start += 3 * len(pending)
        normal = np.sqrt(-2.0 * np.log1p(-u[0])) * np.cos(2.0 * np.pi * u[1])
        v = np.maximum(1.0 + c * normal, 1e-300) ** 3
        log_v = 3.0 * np.log(np.maximum(1.0 + c * normal, 1e-300))
        accepted = np.log1p(-u[2]) < 0.5 * normal**2 + d * (1.0 - v + log_v)
        values[pending[accepted]] = np.log(d) + log_v[accepted]
        pending = pending[~accepted]
    return values


_ATTEMPTS = 200


class Part(NamedTuple):
    """One client's share: its name and the indices of its examples, ascending."""

    name: str
    indices: tuple[int, ...]


def partition(examples: Sequence[Example], table: DataTable, seed: int) -> list[Part]:
    """Splits examples so that each belongs to exactly one client.

    "task" and "category" make one client for each value, in order of names; "file", "folder",
    "column" and "source" one for each owner. ``table.clients_per_source`` divides each source's
    examples at random into so many equal parts. "dirichlet" skews
    labels (the category, else the task): each label's examples are shared out in proportions
    drawn from Dirichlet(``table.alpha``), as FederatedScope and FedKSeed do. "quantity" skews
    sizes: everybody has ``table.min_samples`` random examples, and of the rest so many as
    proportions drawn from Dirichlet(``table.alpha``) say. "iid" makes random parts of equal size.

    Args:
        table: the recipe's; ``clients`` says how many "dirichlet", "quantity" and "iid" make, the
            others leave it out.
        seed: fixes the split.

    Raises:
        UserError: the split cannot be had, or a client would have fewer than ``min_samples``.
    """
    kind = table.partition
    if kind in ("dirichlet", "quantity", "iid"):
        clients = _checked_count(len(examples), table)
        if kind == "dirichlet":
            shares = _skewed_shares(_labels(examples), clients, table, seed)
        elif kind == "quantity":
            shares = _unequal_shares(len(examples), clients, table, seed)
        else:
            shares = _equal_shares(len(examples), clients, Stream(seed, Purpose.PARTITION))
        parts = _numbered("client", shares)
    else:
        if table.clients is not None:
            raise UserError(
                f'data.partition: "{kind}" makes one client for each {_told_apart_by(table)}; '
                f'leave data.clients out, or take data.partition = "iid" for {table.clients} '
                "clients of equal size."
            )
        parts = _by_value(examples, table)
        if table.clients_per_source is not None:
            parts = _divided(parts, table.clients_per_source, seed)
    for part in parts:
        if len(part.indices) < table.min_samples:
            raise UserError(
                f"Client {part.name} is left with {len(part.indices)} examples and the minimum is "
                f"{table.min_samples}; lower the minimum or leave that {kind} out of the data."
            )
    return parts


def _told_apart_by(table: DataTable) -> str:
    return f"{table.by} (data.by)" if table.partition == "column" else table.partition


def _by_value(examples: Sequence[Example], table: DataTable) -> list[Part]:
    named = table.partition if table.partition in ("task", "category") else "owner"
    values = [getattr(example, named) for example in examples]
    if "" in values:
        raise UserError(
            f"Example {values.index('') + 1} has no {_told_apart_by(table)}, by which "
            'data.partition tells clients apart; take data.partition = "iid" and say how many in '
            "data.clients."
        )
    owned: dict[str, list[int]] = {value: [] for value in sorted(set(values))}
    for index, value in enumerate(values):
        owned[value].append(index)
    return [Part(name, tuple(indices)) for name, indices in owned.items()]


def _numbered(name: str, shares: Sequence[Sequence[int]]) -> list[Part]:
    """Parts called by a name and a number, all numbers of one width."""
    width = len(str(len(shares) - 1))
    return [Part(f"{name}-{i:0{width}}", tuple(s)) for i, s in enumerate(shares)]


def _divided(sources: Sequence[Part], clients: int, seed: int) -> list[Part]:
    """``clients`` random parts of equal size of each source's part."""
    parts = []
    for number, (name, indices) in enumerate(sources):
        if len(indices) < clients:
            raise UserError(
                f"The source {name} has {len(indices)} examples, too few for {clients} clients; "
                "lower data.clients_per_source, or hold fewer out (data.test_samples)."
            )
        stream = Stream(seed, Purpose.PARTITION, owner=number)
        shares = _equal_shares(len(indices), clients, stream)
        parts += _numbered(name, [[indices[i] for i in share] for share in shares])
    return parts


def _equal_shares(count: int, clients: int, stream: Stream) -> list[list[int]]:
    order = permutation(stream, count)
    return [sorted(share.tolist()) for share in np.array_split(order, clients)]


def _unequal_shares(count: int, clients: int, table: DataTable, seed: int) -> list[list[int]]:
    """Random shares: ``min_samples`` for everybody, the rest by proportions from a Dirichlet."""
    stream = Stream(seed, Purpose.PARTITION)
    rest = count - clients * table.min_samples
    ends = np.floor(np.cumsum(dirichlet(stream, table.alpha, clients)) * rest).astype(np.int64)
    starts = table.min_samples * np.arange(1, clients) + ends[:-1]
    return [sorted(share.tolist()) for share in np.split(permutation(stream, count), starts)]


def _checked_count(examples: int, table: DataTable) -> int:
    if table.clients is None:
        raise UserError(
            f"The partition {table.partition!r} needs a number of clients; set data.clients."
        )
    if table.clients * table.min_samples > examples:
        raise UserError(
            f"{examples} examples cannot give {table.clients} clients {table.min_samples} each; "
            "lower data.clients or data.min_samples, or hold fewer out (data.test_samples)."
        )
    return table.clients


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
    labels: NDArray[np.int64], clients: int, table: DataTable, seed: int
) -> list[list[int]]:
    for attempt in range(_ATTEMPTS):
        shares = _skewed_attempt(labels, clients, table.alpha, seed, attempt)
        if min(map(len, shares)) >= table.min_samples:
            return [sorted(share) for share in shares]
    raise UserError(
        f"No Dirichlet({table.alpha}) split in {_ATTEMPTS} attempts gave each of {clients} "
        f"clients {table.min_samples} examples; raise alpha, ask for fewer clients or lower the "
        "minimum."
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
