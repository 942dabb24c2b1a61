"""Where in a model a dictionary belongs: what it reads there, and what it says the value of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import xarray as xr

#: A site and its block; the block is None for a site that exists once.
SiteKey: TypeAlias = tuple[str, int | None]

#: Attributes of a dictionary that tell one of a grid from another.
_TOLD_BY = ("site", "layer", "target_site", "target_layer", "architecture", "sparsity_setting")


@dataclass(frozen=True)
class Place:
    """Sites that a dictionary reads and those that it reconstructs, layers in the order of its weights.

    Attributes:
        reads: what is encoded, side by side.
        writes: what is reconstructed: of an autoencoder and a crosscoder what it reads, of a transcoder
            another site.
        tokens: "all" or the one token kind that the dictionary was trained on.
    """

    reads: tuple[SiteKey, ...]
    writes: tuple[SiteKey, ...]
    tokens: str


def place_of(sae: xr.Dataset, sites: Mapping[str, bool]) -> Place:
    """The place of a dictionary.

    Args:
        sae: a ``Dictionary``.
        sites: whether each site of the model exists once a layer; one that is missing here is taken to.
    """
    layers = layers_of(sae)
    reads = _keys(sae.attrs["site"], layers, sites)
    transcodes = sae.attrs["kind"] == "transcoder"
    written = [sae.attrs.get("target_layer", layers[0])]  # the layer that is read, unless another is named
    writes = _keys(sae.attrs["target_site"], written, sites) if transcodes else reads
    return Place(reads, writes, sae.attrs["tokens"])


def layers_of(sae: xr.Dataset) -> list[int | None]:
    """The layers that a dictionary reads: several of a crosscoder, None for a site that exists once."""
    if sae.attrs["kind"] == "crosscoder":
        return sae["layer"].values.tolist()
    return [sae.attrs.get("layer")]


def _keys(site: str, layers: list[int | None], sites: Mapping[str, bool]) -> tuple[SiteKey, ...]:
    return tuple((site, layer) for layer in layers) if sites.get(site, True) else ((site, None),)


def labels_of(sae: xr.Dataset) -> dict[str, Any]:
    """What tells a dictionary from others, as scalar coordinates of whatever is measured of it."""
    return {name: sae.attrs[name] for name in _TOLD_BY if name in sae.attrs}
