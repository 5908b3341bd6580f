"""A validation part, held out of the clients' training data for a search."""

from __future__ import annotations

from collections.abc import Sequence

from fullfed.data.packed import PackedExamples
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.randomness import Purpose, Stream, permutation

_SHARE = 10  # one example in so many
_MOST = 500  # enough to tell learning rates apart


def hold_out(
    clients: Sequence[Sequence[TokenizedExample]], seed: int
) -> tuple[list[PackedExamples], list[TokenizedExample]]:
    """(what each client keeps, the validation part of all).

    About a tenth of every client's examples, chosen at random, and at most 500 in all; a client
    keeps at least one.

    Raises:
        UserError: no client has two examples.
    """
    orders = [
        permutation(Stream(seed, Purpose.VALIDATION, owner=number), len(examples)).tolist()
        for number, examples in enumerate(clients)
    ]
    # Evenly spaced over the clients' shuffled examples in one row, so that each client gives its
    # share, rounded up or down.
    row = [(n, i) for n, order in enumerate(orders) if len(order) > 1 for i in order]
    if not row:
        raise UserError(
            "no client has two examples, so that none can be held out to choose a learning rate; "
            "ask for fewer clients."
        )
    count = min(_MOST, -(-len(row) // _SHARE))
    chosen = {row[position * len(row) // count] for position in range(count)}
    kept = [
        PackedExamples([e for i, e in enumerate(examples) if (number, i) not in chosen])
        for number, examples in enumerate(clients)
    ]
    return kept, [clients[number][i] for number, i in sorted(chosen)]
