"""Which tokens a dictionary is trained and evaluated on."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Bool, Shaped

from prisma_steps.step import StepError


def chosen_tokens(token_kind: Shaped[np.ndarray, " token"], tokens: str) -> Bool[np.ndarray, " token"]:
    """Where ``tokens`` ("all", or one token kind) holds along the sequence.

    Raises:
        StepError: when it holds nowhere.
    """
    chosen = np.ones(len(token_kind), dtype=bool) if tokens == "all" else token_kind == tokens
    if not chosen.any():
        raise StepError(
            f"tokens = {tokens!r}: the site has no such token, only {', '.join(np.unique(token_kind))}"
        )
    return chosen


def only_kind(values: xr.DataArray, tokens: str) -> str:
    """``tokens``, or the one token kind that "all" comes down to where no other is stored."""
    kinds = np.unique(values["token_kind"].values)
    return str(kinds[0]) if len(kinds) == 1 else tokens
