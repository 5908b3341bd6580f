"""The recipe's table on who may learn what: sums that show no one's numbers, and noise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fullfed.config_values import PositiveFloat, RecipeTable


class PrivacyTable(RecipeTable):
    """What the server, and readers of the model, can learn of clients and their records.

    In sums, secure ones or with noise, clients weigh alike whatever samples they have.

    Attributes:
        secure_sum: whether the server learns the sum of a round's reports alone.
        bits: of each coordinate of a sketch in a sum; as many as the cohort needs where it is not
            said. Other codecs' numbers have 32.
        protects: whose presence in the data the model must not tell: a whole "client"'s, or that
            of a single "record" of one (a piece of a text that is longer than a sample is one).
            Nobody's where it is not said.
        epsilon: of the (epsilon, delta) differential privacy that a run keeps to; it ends before
            the round that would exceed it. Of records each client has an account of its own, and
            refuses the visit that would exceed it.
        delta: how likely epsilon may be exceeded; below one over the number of clients (records).
        noise: the standard deviation of a round's (a step's) noise, in multiples of ``clip``; as
            much as ``epsilon`` needs for all rounds where it is not said.
        clip: the largest norm that a client's change (a record's gradient) counts with; where
            ``clip_quantile`` is said, in the first round. Of records it takes the place of
            ``local.clip``.
        clip_quantile: the share of clients whose changes are to be no longer than what is counted,
            which then follows them, itself privately (Andrew et al. 2021, arXiv 1905.03871).
        sampling: whether a round has as many clients as the recipe says, or each client is in it
            by itself with the same probability, drawn in secret. Only then epsilon counts on it.
    """

    secure_sum: bool = False
    bits: Annotated[int, Field(ge=4, le=32)] | None = None
    protects: Literal["client", "record"] | None = None
    epsilon: PositiveFloat | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    noise: PositiveFloat | None = None
    clip: PositiveFloat | None = None
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    sampling: Literal["fixed", "poisson"] = "fixed"

    @property
    def only_sums(self) -> bool:
        """Whether the method sees nothing of a round's reports but their sum."""
        return self.secure_sum or self.protects == "client"

    @model_validator(mode="after")
    def _goes_together(self) -> PrivacyTable:
        noisy = {
            name: getattr(self, name)
            for name in ("epsilon", "delta", "noise", "clip", "clip_quantile")
        }
        if self.protects is None:
            noisy["sampling"] = self.sampling if self.sampling != "fixed" else None
            said = [name for name, value in noisy.items() if value is not None]
            if said:
                raise ValueError(f"{said[0]} goes with protects = 'client' or 'record'")
            if not self.secure_sum:
                raise ValueError("say secure_sum = true, protects = 'client', or both")
            return self
        for name in ("delta", "clip"):
            if noisy[name] is None:
                raise ValueError(f"protects = '{self.protects}' needs {name}")
        if self.epsilon is None and self.noise is None:
            raise ValueError(f"protects = '{self.protects}' needs epsilon, noise or both")
        if self.sampling == "poisson" and self.protects != "client":
            raise ValueError("sampling = 'poisson' goes with protects = 'client'")
        if self.clip_quantile is not None and self.protects == "record":
            raise ValueError("clip_quantile goes with protects = 'client'")
        return self
