"""The held-out check of a run's rounds: on which samples, and who is left out for good.

Who is follows from what the records say of earlier rounds, so that a run that is resumed, or taken
back, goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fullfed.config import Recipe
from fullfed.data.federated import FederatedData
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.held_out import FEWEST, HeldOutCheck, persistent
from fullfed.federation.messages import Update
from fullfed.federation.replica import Replica
from fullfed.runs.folder import RunFolder


def round_check(
    recipe: Recipe, replica: Replica, data: FederatedData, folder: RunFolder, last: Update | None
) -> HeldOutCheck | None:
    """The check of a run's next round; None where the recipe has none.

    Args:
        replica: the server's, at the round's version.
        data: has the samples.
        last: the previous round's update, None in round 0.
    """
    table = recipe.check
    if table is None:
        return None
    names = [client["name"] for client in folder.clients()]
    check_trusted(recipe, names)
    trusted = {names.index(name) for name in table.trusted}
    found = persistent((record["check"] for record in folder.metrics()), table.patience)
    return HeldOutCheck(
        replica,
        partial(evaluate_loss, replica.model, data.check, recipe.evaluated_together),
        last,
        frozenset(found) - trusted,
        trusted,
    )


def check_cohort_of_check(recipe: Recipe, together: int) -> None:
    """See that enough clients train the same parameters in a round to be compared.

    Raises:
        UserError: ``together`` are too few, and the recipe has a check.
    """
    if recipe.check is not None and together < FEWEST:
        raise UserError(
            f"check: a report is compared with the others on the same parameters, and {together} "
            f"of them are too few; have at least {FEWEST} clients train them, or leave the table "
            "out."
        )


def check_trusted(recipe: Recipe, names: Sequence[str]) -> None:
    """See that the clients that the recipe's check trusts are there.

    Raises:
        UserError: one of them is not.
    """
    unknown = set(recipe.check.trusted if recipe.check else ()) - {*names}
    if unknown:
        raise UserError(
            f"check.trusted: there is no client {min(unknown)!r}; name some of "
            f"{', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}."
        )
