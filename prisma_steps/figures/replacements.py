"""What is ablated and what takes its place, as captions of figures of ablations say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.schema import MEANINGS

if TYPE_CHECKING:
    import xarray as xr

REPLACEMENTS = {
    "zero": "zeros",
    "mean": "its mean over images and tokens",
    "mean_per_token": "its mean over images at the token",
    "resample": "that of another image",
}


def ablated(ablation: xr.Dataset) -> str:
    """The site and the tokens that were ablated, and by what they were replaced."""
    site, tokens = MEANINGS[ablation.attrs["site"]].long_name, ablation.attrs["tokens"]
    at = f"{tokens} tokens" if isinstance(tokens, str) else f"the tokens {', '.join(map(str, tokens))}"
    by = [REPLACEMENTS[kind] for kind in ablation["ablation"].values.tolist()]
    return f"{site} at {at}, replaced by {' or '.join(by)}"
