"""Activations of a model as tensors ready to be stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError
from prisma_steps.schema import SITE_DIMS

TokenChoice = Literal["all", "cls", "patch"]


class UnfitValueError(ValueError):
    """An activation that is not finite, or too large for how it is to be stored.

    Attributes:
        image: which image of the batch it belongs to.
    """

    def __init__(self, image: int, reason: str) -> None:
        """Say where such a value lies and what it is."""
        super().__init__(reason)
        self.image = image


def kept_tokens(model: HookedViT, site: str, tokens: TokenChoice) -> np.ndarray:
    """Positions in the model's sequence of the tokens that a site has and that are kept.

    Raises:
        SiteError: for a site with one token that is made of several, which has no place in the sequence.
    """
    places = model.token_coords()
    there = model.kept_at(site, places)
    if there is None:
        raise SiteError(
            f"the model pools before {site!r}: no token of the sequence is there. Read resid_post of the "
            "last layer, or the pooled token with run_with_cache"
        )
    kinds = places["token_kind"][there]
    return there[(kinds == tokens) | (tokens == "all")]


@torch.no_grad()
def read(
    model: HookedViT,
    pixels: Float[Tensor, "image channel row column"],
    sites: Sequence[str],
    layers: Sequence[int],
    tokens: TokenChoice,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Activations with dims ``image``, ``layer`` where the site exists in every block, and the site's others.

    Raises:
        SiteError: for a site or layer that the model does not have.
        UnfitValueError: for a value that ``dtype`` cannot hold.
    """
    cache = model.read(pixels, sites, layers)
    chosen = {site: _chosen(model, site, tokens) for site in sites}
    stored = {key: _store(*key, value[:, chosen[key[0]]], dtype) for key, value in cache.items()}
    per_layer = model.sites
    return {
        site: torch.stack([stored[site, layer] for layer in layers], dim=1)
        if per_layer[site]
        else stored[site, None]
        for site in sites
    }


def _chosen(model: HookedViT, site: str, tokens: TokenChoice) -> slice | Tensor:
    """Which of the tokens that a site has are kept, counted among them; a slice where all are."""
    if tokens == "all" or "token" not in SITE_DIMS[site]:
        return slice(None)
    wanted, there = kept_tokens(model, site, tokens), kept_tokens(model, site, "all")
    return torch.from_numpy(np.searchsorted(there, wanted))


def _store(site: str, layer: int | None, value: Tensor, dtype: torch.dtype) -> Tensor:
    stored = value.to("cpu", dtype)
    if all(end.isfinite() for end in torch.aminmax(stored)):  # NaN is both; isfinite takes ten times as long
        return stored
    image, *_ = (~stored.isfinite()).nonzero()[0].tolist()
    found = value[image].flatten()
    worst = found[torch.where(found.isfinite(), found.abs(), torch.inf).argmax()]
    where = site if layer is None else f"{site} of layer {layer}"
    raise UnfitValueError(image, f"{where} holds {worst.item():g}, which {dtype} storage refuses")
