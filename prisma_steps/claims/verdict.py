"""A claim held against the data: what is reproduced, how far seeds spread, and whether the claim holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import xarray as xr

from prisma_steps.claims.check import SEED
from prisma_steps.claims.declaration import Claim
from prisma_steps.claims.evaluate import NoValue, evaluate
from prisma_steps.claims.seeds import at_every_seed

State: TypeAlias = Literal["holds", "fails", "not yet run", "error"]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        reproduced: the value; None when there is none.
        by_seed: the value of every seed alone, where it has one.
        reason: why there is no value, or what is missing; empty when there is a value.
    """

    claim: Claim
    state: State
    reproduced: float | bool | None = None
    by_seed: Mapping[int, float | bool] = field(default_factory=dict)
    reason: str = ""

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (divided by n − 1); None of truth values and of fewer than two."""
        values = [value for value in self.by_seed.values() if not isinstance(value, bool)]
        return statistics.stdev(values) if len(values) > 1 else None


def judge(claim: Claim, data: Mapping[str, xr.Dataset]) -> Verdict:
    """Hold a claim against the data of the nodes that it names; whatever goes wrong is the verdict.

    A number that is left with ``seed`` is its mean over seeds. What is true or false must be true of every
    seed that it is left with.
    """
    try:
        alone = at_every_seed(claim.value, data)
        by_seed = {seed: _one(value, claim, f" of seed {seed}") for seed, value in alone.items()}
        reproduced = _one(evaluate(claim.value, data), claim)
    except NoValue as error:
        return Verdict(claim, "error", reason=str(error))
    holds = reproduced if claim.criterion is None else claim.criterion.holds(reproduced)
    return Verdict(claim, "holds" if holds else "fails", reproduced, by_seed)


def _one(value: xr.DataArray, claim: Claim, whose: str = "") -> float | bool:
    """The number or truth value that an array is, over the seeds that are left."""
    left = [str(dim) for dim in value.dims if dim != SEED]
    if left:
        what = f"{claim.text} is left with {', '.join(left)}: reduce it, or select one value"
        raise NoValue(what)
    if value.dtype == bool:
        if claim.criterion is not None:
            raise NoValue(f"{claim.text} is true or false, and held against a number: {claim.criterion}")
        return bool(value.all())
    if value.dtype.kind not in "iuf":
        raise NoValue(f"{claim.text} is of type {value.dtype}, expected a number")
    if claim.criterion is None:
        raise NoValue(f"{claim.text} is a number that is held against nothing")
    number = float(value.astype(float).mean(skipna=False))
    if not math.isfinite(number):
        raise NoValue(f"the value{whose} is {number}")
    return number
